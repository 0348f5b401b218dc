"""How order enters a model: added to the embeddings, rotated into queries and keys, a bias on the logits, or a mask.

What a model knows is handed to a constructor only where it has a parameter of that name and the expression doesn't set
it: `dim` (the width of the model: `Learned`, `Grid`, `Cable`), `heads` (the number of query heads) and `causal` (both
`T5`, `FIRE`, `Cable`). The others need nothing: rope() and alibi() and sinusoidal() read the widths off what they are
given.
"""

from lengthwise.positions.alibi import ALiBi
from lengthwise.positions.cable import Cable
from lengthwise.positions.fire import FIRE
from lengthwise.positions.grid import Grid
from lengthwise.positions.hard_alibi import HardALiBi
from lengthwise.positions.learned import Learned
from lengthwise.positions.none import NoPosition
from lengthwise.positions.position import Position
from lengthwise.positions.randomised import Randomised
from lengthwise.positions.rope import RoPE
from lengthwise.positions.seqpe import SeqPE
from lengthwise.positions.sinusoidal import Sinusoidal
from lengthwise.positions.t5 import T5

POSITIONS: dict[str, type[Position]] = {
    "none": NoPosition,
    "learned": Learned,
    "grid": Grid,
    "sinusoidal": Sinusoidal,
    "rope": RoPE,
    "alibi": ALiBi,
    "t5": T5,
    "fire": FIRE,
    "cable": Cable,
    "hard_alibi": HardALiBi,
    "seqpe": SeqPE,
    "randomised": Randomised,
}
"""The position encodings by the names that expressions use."""
