"""SeqPE: positions read as digits, with similarities that follow distance, go on beyond the trained length."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from lengthwise.models.language_model import LanguageModel
from lengthwise.positions.seqpe import SeqPE
from lengthwise.systems.experiments import nll, of_each, rise, train_each
from lengthwise.systems.system import Figure, Run, System, at_least, at_most, reported

SYSTEM = System(
    key="seqpe",
    title="SeqPE: Transformer with Sequential Position Encoding",
    arxiv="2506.13277",
    parts=["positions.seqpe", "positions.seqpe_encoder", "positions.seqpe_losses", "mixers.attention"],
    claim="positions read as digits, with a contrastive and a transfer loss, raise the loss less beyond the trained"
    " length than rotary positions",
    expression="12*(attention(position=seqpe) + mlp)",
)

STEPS, TRAINED = 450, 64
POSITIONS, NEAR = 1000, 64
WITH, WITHOUT, ROPE = "with losses", "without losses", "rope"
VARIANTS = {
    WITH: f"seqpe(heads=4, positions={POSITIONS}, samples=8, choices=16)",
    WITHOUT: f"seqpe(heads=4, positions={POSITIONS}, contrast=0, transfer=0, shift=0)",
    ROPE: "rope",
}


@SYSTEM.experiment
def reproduce(run: Run) -> Iterator[Figure]:
    """The byte language model of `lengthwise.systems.experiments` at length 64, with sequential positions of width 64
    in the logits, with and without their losses and shifts, and with rotary ones.

    Losses have weights of 0.1, with 8 pivots of 16 candidates and 8 far windows of 16 places in each step. A rise is
    that of the mean loss from contexts of 64 to longer ones. The correlation is that of ranks, between ⟨e(a), e(b)⟩ and
    −|a − b|, over those of 2000 random pairs of positions from 64 to 999 that lie at most 64 apart. Pictures aren't
    measured: that needs handwritten digits, which no package used here has.
    """
    kinds = {name: {"position": position} for name, position in VARIANTS.items()}
    yield from compared(of_each(train_each(run, kinds, run.seeds, STEPS), measures), len(run.seeds))


def compared(found: dict[str, dict[str, float]], seeds: int) -> Iterator[Figure]:
    """The figures, of the mean of each measure."""
    of = f"mean of {seeds} seeds" if seeds > 1 else "one seed"
    ours, bare, rope = (found[name] for name in (WITH, WITHOUT, ROPE))
    yield at_most(
        f"rise of the loss from context 64 to 512 with the losses, over that without ({of})",
        ours["512"] / bare["512"],
        0.7,
        claimed="both losses help beyond the trained length",
        note=f"{ours['512']:.3f} and {bare['512']:.3f}",
    )
    yield at_most(
        f"rise of the loss from context 64 to 512 with the losses, less that of rope ({of})",
        ours["512"] - rope["512"],
        0,
        claimed="better perplexity than rope beyond the trained length",
        note=f"{ours['512']:.3f} and {rope['512']:.3f}",
    )
    yield at_least(f"rank correlation of similarity and nearness ({of})", ours["correlation"], 0.7)
    yield reported(f"the same without the losses ({of})", bare["correlation"])
    for name, measured in found.items():
        yield reported(f"nats per byte at context 64, {name} ({of})", measured["nats"])
        yield reported(f"rise of the loss from context 64 to 256, {name} ({of})", measured["256"])


def measures(model: LanguageModel) -> dict[str, float]:
    """What is measured of a trained model."""
    found = {"nats": nll(model, TRAINED), **{str(n): rise(model, n, TRAINED) for n in (256, 512)}}
    seqpe = next((module for module in model.modules() if isinstance(module, SeqPE)), None)
    return found if seqpe is None else {**found, "correlation": nearness(seqpe)}


@torch.no_grad()
def nearness(seqpe: SeqPE, pairs: int = 2000, seed: int = 0) -> float:
    """The rank correlation of ⟨e(a), e(b)⟩ with −|a − b|, over random pairs beyond the trained length that lie at most
    64 apart."""
    drawn = torch.randint(TRAINED, POSITIONS, (pairs, 2), generator=torch.Generator().manual_seed(seed))
    a, b = drawn[(drawn[:, 0] - drawn[:, 1]).abs() <= NEAR].unbind(1)
    e = seqpe.encodings.encoder
    return rank_correlation((e(a[:, None]) * e(b[:, None])).sum(-1), -(a - b).abs())


def rank_correlation(x: Tensor, y: Tensor) -> float:
    """Spearman's: the correlation of the ranks, equal values sharing the mean of theirs."""
    return float(torch.corrcoef(torch.stack([ranks(x), ranks(y)]))[0, 1])


def ranks(x: Tensor) -> Float[Tensor, " n"]:
    """The rank of each value."""
    _, group, size = x.unique(return_inverse=True, return_counts=True)
    last = size.cumsum(0).double()
    return (last - (size - 1) / 2)[group]
