"""State control: what keeps a recurrent state in the range it was trained on when the sequence is longer. No training.

A recurrence S_t = α_t S_{t-1} + k_t v_tᵀ, o_t = S_tᵀ q_t that was trained on short sequences need not have learnt to
forget, and leaves that range on longer ones ("state collapse"). `mixer.control(Window(64))`, or in an expression
`mamba2(state_control=window(length=64))`, runs a trained mixer with one of

    forget(decay=c_a, insertion=c_b)      α_t ← α_t^c_a,  k_t ← c_b k_t
    normalise(limit=p, every=n)           S ← S · min(1, p / ‖S‖_F) for each head after every n tokens of a document
    window(length=r)                      S^(r)_t = S_t − α_{t-r+1} … α_t S_{t-r}, the state of the last r tokens alone

Chen et al. 2024, arXiv 2410.07145.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from lengthwise.contract import State
from lengthwise.errors import InputError
from lengthwise.ops.chunk_decay import FORGOTTEN
from lengthwise.ops.intervals import tokens_modulo
from lengthwise.ops.linear_attention import linear_attention

Matrix = Float[Tensor, "batch heads key_dim value_dim"]
Starts = Bool[Tensor, "batch length"]
Inputs = tuple[
    Float[Tensor, "batch length groups key_dim"],
    Float[Tensor, "batch length groups key_dim"],
    Float[Tensor, "batch length heads value_dim"],
    Float[Tensor, "batch length heads"],
]
"""q, k, v and log α, as `linear_attention` takes them."""

Outputs = Float[Tensor, "batch length heads value_dim"]


@dataclass(frozen=True)
class CountedState(State):
    """S, and the tokens since its document began, modulo the tokens between two normalisations."""

    S: Matrix
    seen: Int[Tensor, " batch"]


@dataclass(frozen=True)
class WindowState(State):
    """The last inputs of a window, zeros where there were none yet."""

    k: Float[Tensor, "batch window groups key_dim"]
    v: Float[Tensor, "batch window heads value_dim"]
    decay: Float[Tensor, "batch window heads"]


Memory = Matrix | CountedState | WindowState
"""What a recurrence goes on from."""


class StateControl:
    """The recurrence as it was trained, and what the others replace.

    window: the number of latest tokens that the state holds; None where there is no limit.
    compiles: works under `torch.compile` without leaving the graph.
    """

    window: int | None = None
    compiles: ClassVar[bool] = True

    def run(self, inputs: Inputs, memory: Any, starts: Starts | None) -> tuple[Outputs, Any]:
        """o for every token, and what to go on from."""
        return linear_attention(*inputs, memory, starts)

    def nbytes(self, shape: tuple[int, int, int, int]) -> int:
        """Bytes of what one row goes on from. shape: heads, value_dim, groups, key_dim."""
        heads, value_dim, _, key_dim = shape
        return 4 * heads * value_dim * key_dim


class Forget(StateControl):
    """Forget more and insert less: α_t ← α_t^decay, k_t ← insertion · k_t.

    Raises InputError for a negative decay.
    """

    def __init__(self, *, decay: float = 1.0, insertion: float = 1.0) -> None:
        if decay < 0:
            raise InputError(f"decay multiplies the log decay and must be at least 0, got {decay}")
        self.decay, self.insertion = decay, insertion

    def run(self, inputs: Inputs, memory: Matrix | None, starts: Starts | None) -> tuple[Outputs, Matrix]:
        """o for every token, and what to go on from."""
        q, k, v, decay = inputs
        return linear_attention(q, k * self.insertion, v, decay * self.decay, memory, starts)


class Normalise(StateControl):
    """S ← S · min(1, limit / ‖S‖_F) for each head, after every `every` tokens of a document.

    limit: for all heads, or a number for each; best the norms of states within the length of training.
    Raises InputError for a limit that isn't positive and for less than one token.
    """

    compiles = False

    def __init__(self, *, limit: float | Float[Tensor, " heads"], every: int = 128) -> None:
        if not (torch.as_tensor(limit, device="cpu") > 0).all():  # also where the model is made without memory
            raise InputError(f"limit must be positive, got {limit}")
        if every < 1:
            raise InputError(f"every must be at least 1 token, got {every}")
        self.limit, self.every = limit, every

    def run(self, inputs: Inputs, memory: CountedState | None, starts: Starts | None) -> tuple[Outputs, CountedState]:
        """o for every token, and what to go on from."""
        (q, k, v, decay), length = inputs, inputs[2].shape[1]
        state = None if memory is None else memory.S
        seen = torch.zeros(len(v), dtype=torch.long, device=v.device) if memory is None else memory.seen
        after = tokens_modulo(seen, length, starts, self.every)
        cuts = [t + 1 for t in range(length) if bool((after[:, t] == 0).any())] if length else []
        outputs, begin = [], 0
        for end in [*cuts, length] if length not in cuts else cuts:
            here = slice(begin, end)
            first = None if starts is None else starts[:, here]
            o, S = linear_attention(q[:, here], k[:, here], v[:, here], decay[:, here], state, first)
            if end in cuts:
                S = torch.where((after[:, end - 1] == 0)[:, None, None, None], self.normalised(S), S)
            state = S
            outputs.append(o)
            begin = end
        return torch.cat(outputs, 1), CountedState(S, after[:, -1] if length else seen)

    def normalised(self, state: Matrix) -> Matrix:
        """The state with no head's norm above its limit."""
        limit = torch.as_tensor(self.limit, dtype=state.dtype, device=state.device).expand(state.shape[1])
        # Squares of large numbers overflow, hence the norm of the state over its largest number.
        largest = state.detach().abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(state.dtype).tiny)
        norm = largest[..., 0, 0] * torch.linalg.matrix_norm(state / largest)
        above = norm > limit
        return state * torch.where(above, limit / torch.where(above, norm, 1.0), 1.0)[..., None, None]

    def nbytes(self, shape: tuple[int, int, int, int]) -> int:
        """Bytes of what one row goes on from: S and a count."""
        return super().nbytes(shape) + torch.long.itemsize


class Window(StateControl):
    """The state of the last `length` tokens alone.

    The difference of two states would lose the window's digits where the states are large. Instead, with blocks of
    `length` tokens, a token sees its own block up to itself, which is the recurrence begun anew in each block, and what
    it still sees of the block before it, which is a recurrence in reverse: with suffix sums of the block before,

        o_t += exp(G_t) q_t · Σ_{i > t - r} exp(G′_i) k_i v_iᵀ      G_t: log α from the block's first token to t,
                                                                     G′_i: from i + 1 to the end of its block.

    All exponents are sums of log decays, so nothing overflows or cancels. Blocks begin where the call does. The last
    length − 1 inputs are kept, and a token alone costs as much as reading them.
    Raises InputError for a length below 1.
    """

    def __init__(self, length: int) -> None:
        if length < 1:
            raise InputError(f"a window must have at least 1 token, got {length}")
        self.window = length

    def run(self, inputs: Inputs, memory: WindowState | None, starts: Starts | None) -> tuple[Outputs, WindowState]:
        """o for every token, and what to go on from."""
        q, k, v, decay = inputs
        length, window = q.shape[1], self.window or 1
        if starts is not None:
            decay = decay.masked_fill(starts[..., None], FORGOTTEN)
        if memory is None and length <= window:
            o, _ = linear_attention(q, k, v, decay)
            return o, self.latest(k, v, decay)
        before = self.latest(k[:, :0], v[:, :0], decay[:, :0]) if memory is None else memory
        k, v, decay = (torch.cat([a.to(b.dtype), b], 1) for a, b in zip(self.parts(before), (k, v, decay), strict=True))
        after = self.latest(k, v, decay)
        if length == 0:
            return v[:, window - 1 :], after
        # A block before the first, of the inputs kept, and the last one filled up with nothing.
        blocks = -(-length // window)
        k, v, decay = (blocked(functional.pad(x, ends(x, 1, blocks * window - length)), window) for x in (k, v, decay))
        q = blocked(functional.pad(q, ends(q, 0, blocks * window - length)), window)
        own = (x[:, 1:].flatten(0, 1) for x in (k, v, decay))
        o, _ = linear_attention(q.flatten(0, 1), *own)
        o = o + self.earlier(q, k[:, :-1], v[:, :-1], decay)
        return o.unflatten(0, (-1, blocks)).flatten(1, 2)[:, :length], after

    def earlier(self, q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Outputs:
        """What the tokens of each block see of the block before, [batch, blocks, window, …] each."""
        entered = decay[:, 1:].cumsum(2).exp()
        left = functional.pad(decay[:, :-1, 1:], (0, 0, 0, 1)).flip(2).cumsum(2).flip(2).exp()
        # The token at s of a block sees those after s of the block before.
        ahead = functional.pad(q[:, :, :-1], (0, 0, 0, 0, 1, 0))
        turned = ((x.flatten(0, 1)).flip(1) for x in (ahead, k, v * left.unsqueeze(-1)))
        seen, _ = linear_attention(*turned)
        seen = functional.pad(seen.flip(1)[:, 1:], (0, 0, 0, 0, 0, 1))
        return seen * entered.flatten(0, 1).unsqueeze(-1)

    def latest(self, k: Tensor, v: Tensor, decay: Tensor) -> WindowState:
        """The inputs that the next token may see."""
        kept = (self.window or 1) - 1

        def last(x: Tensor) -> Tensor:
            x = x[:, max(x.shape[1] - kept, 0) :].to(v.dtype)
            return functional.pad(x, ends(x, kept - x.shape[1], 0)).clone()

        return WindowState(last(k), last(v), last(decay))

    def parts(self, state: WindowState) -> tuple[Tensor, Tensor, Tensor]:
        """k, v and log decay."""
        return state.k, state.v, state.decay

    def nbytes(self, shape: tuple[int, int, int, int]) -> int:
        """Bytes of what one row goes on from: the inputs of all but one token of the window."""
        heads, value_dim, groups, key_dim = shape
        return 4 * ((self.window or 1) - 1) * (groups * key_dim + heads * value_dim + heads)


def ends(x: Tensor, before: int, after: int) -> tuple[int, ...]:
    """How far `pad` lengthens a sequence [batch, length, …] at both ends."""
    return (*(0, 0) * (x.ndim - 2), before, after)


def blocked(x: Float[Tensor, "batch length ..."], size: int) -> Tensor:
    """[batch, blocks, size, …]"""
    return x.unflatten(1, (-1, size))


STATE_CONTROLS: dict[str, Callable[..., StateControl]] = {
    "forget": Forget,
    "normalise": Normalise,
    "window": Window,
}
"""The state controls by the names that expressions use."""
