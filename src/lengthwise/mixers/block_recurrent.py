"""A Transformer layer with a bank of states that goes from block to block."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lengthwise.caches.buffer import appended, leave
from lengthwise.contract import State
from lengthwise.errors import InputError, unknown
from lengthwise.mixers.heads import check_heads
from lengthwise.mixers.segments import Segmented
from lengthwise.ops.chunks import state_dtype
from lengthwise.ops.dense_attention import dense
from lengthwise.positions.t5 import T5

GATES = ("fixed", "lstm")
"""How what is new is weighed against the state."""

CONFIGURATIONS = ("skip", "single", "dual")
"""Where a state is gated: see `BlockRecurrent`."""

EPS = 1e-6

Heads = Float[Tensor, "batch length heads head_dim"]


@dataclass(frozen=True)
class BlockRecurrentState(State):
    """C, in float32 or wider, and what tokens read of it; keys and values of the block before and of the open one.

    passed: blocks since gradients ended.
    """

    bank: Float[Tensor, "batch states dim"]
    bank_keys: Float[Tensor, "batch states heads head_dim"]
    bank_values: Float[Tensor, "batch states heads head_dim"]
    keys: Float[Tensor, "batch kept heads head_dim"]
    values: Float[Tensor, "batch kept heads head_dim"]
    passed: int = 0


class BlockRecurrent(Segmented):
    """A layer of attention in a window and an MLP, of which tokens also read S state vectors, renewed after each block.

        tokens   K, V, Q, Q′ = heads of W_x RMSNorm(X)          states   K, V, Q, Q′ = heads of W_c (RMSNorm(C) + P)
        A = [attend(Q_x, K_x, V_x) ; attend(Q′_x, K_c, V_c)]    B = [attend(Q_c, K_c, V_c) ; attend(Q′_c, K_x, V_x)]
        Y = X + W_o A          output = Y + W_2 relu(W_1 RMSNorm(Y))          C ← gate(B, C) after every W tokens

    attend weighs by softmax(|a_h| q · k) with q and k of length 1, and an a of its own for each of the four. Tokens see
    the last W tokens, themselves included, with a T5 bias, and all states as they were before their block. States see
    each other, and the tokens of their block and of the one before. P tells states apart, which would else stay alike.

        fixed   g = σ(b_g)          gate(h, c) = g c + (1 − g) z          z = W_z h + b_z
        lstm    i = σ(W_i h + b_i − 1)   f = σ(W_f h + b_f + 1)          gate(h, c) = f c + i z

    configuration: "skip" is gate(B, C); "single" has an MLP in it, gate(relu(W_3 B), C) with tanh(z) for z; "dual" is
    C₁ = gate(B, C), then gate′(relu(W_3 RMSNorm(C₁)), C₁).
    heads: chosen near a width of 64 where it is None. block: W, counted from the beginning of each document. states: S.
    hidden: width of the MLPs, 4 dim unless given. scale: where a begins; √head_dim is the scale of other attention,
    which an optimiser of small steps is long in reaching from 1. backprop: gradients end before every K-th block; None
    ends none.

    Matrices begin with a variance of 1 / fan-in, W_i and W_f of a tenth of it; C as N(0, 0.1²), P as N(0, 1), b_g, b_i
    and b_f as N(0, 0.1²). It norms what it is given and adds it itself.
    Costs O(L (W + S) + L S (S + W) / W). State: S · dim numbers in float32, 2 S · dim of keys and values of the states,
    and keys and values of at most 2 W − 1 tokens. Hutchins et al. 2022, arXiv 2203.07852.
    Raises InputError for sizes below 1, heads that don't divide and names that aren't known.
    """

    residual = prenorm = False
    growth = "window"

    def __init__(
        self,
        dim: int,
        *,
        heads: int | None = None,
        block: int = 512,
        states: int = 512,
        gate: str = "fixed",
        configuration: str = "skip",
        hidden: int | None = None,
        scale: float | int = 1.0,
        backprop: int | None = None,
    ) -> None:
        hidden = 4 * dim if hidden is None else hidden
        for name, size in {"block": block, "states": states, "hidden": hidden}.items():
            if size < 1:
                raise InputError(f"{name} must be at least 1, got {size}")
        for name, value, known in (("gate", gate, GATES), ("configuration", configuration, CONFIGURATIONS)):
            if value not in known:
                raise unknown(name, value, known)
        super().__init__(block, backprop)
        self.dim, self.heads, self.states, self.chunk = dim, check_heads(dim, heads)[0], states, block
        self.configuration = configuration
        if backprop is not None:
            why = f"the states are cut from the graph after every {backprop} blocks: truncated back-propagation"
            self.breaks = {"gradients": why}  # type: ignore[misc]
        self.norm, self.mlp_norm, self.bank_norm = (nn.RMSNorm(dim, eps=EPS) for _ in range(3))
        self.proj = linear(dim, 4 * dim)
        self.bank_q_proj, self.bank_kv_proj = linear(dim, 2 * dim), linear(dim, 2 * dim)
        self.o_proj = linear(2 * dim, dim)
        self.up, self.down = linear(dim, hidden), linear(hidden, dim)
        self.position = T5(heads=self.heads)
        self.scales, self.bank_scales = (nn.Parameter(torch.full((2, self.heads), float(scale))) for _ in range(2))
        self.bank = nn.Parameter(0.1 * torch.randn(states, dim))
        self.ids = nn.Parameter(torch.randn(states, dim))
        for undecayed in (self.scales, self.bank_scales, self.bank, self.ids):
            undecayed.no_weight_decay = True  # type: ignore[attr-defined]
        if configuration != "skip":
            self.bank_mlp_norm = nn.RMSNorm(dim, eps=EPS) if configuration == "dual" else nn.Identity()
            self.bank_up = linear(dim if configuration == "dual" else 2 * dim, hidden)
            self.mlp_gate = Gate(hidden, dim, gate, bounded=configuration == "single")
        if configuration != "single":
            self.gate = Gate(2 * dim, dim, gate)

    def advance(
        self, x: Float[Tensor, "batch length dim"], state: BlockRecurrentState | None
    ) -> tuple[Float[Tensor, "batch length dim"], BlockRecurrentState]:
        """Block after block."""
        if state is None:
            state = self.initial(x)
        elif torch.is_grad_enabled():  # the weights of K_c and V_c are trained too where the states are cut off
            state = replace(state, **self.bank_seen(state.bank, x.dtype))  # type: ignore[arg-type]
        read = [x.new_zeros(len(x), 0, 2 * self.dim)]
        biases: dict[tuple[int, int], Tensor] = {}
        q, q_cross, k, v = self.proj(self.norm(x)).unflatten(-1, (4, self.heads, -1)).unbind(2)
        place = state.keys.shape[1] % self.segment
        for piece in zip(*(self.pieces(t, place) for t in (unit(q), unit(q_cross), unit(k), v)), strict=True):
            shape = (state.keys.shape[1], piece[0].shape[1])
            if shape not in biases:
                biases[shape] = self.bias(*shape).to(x.dtype)
            a, state = self.read(piece, state, biases[shape])
            read.append(a)
        y = x + self.o_proj(torch.cat(read, 1))
        return y + self.down(F.relu(self.up(self.mlp_norm(y)))), state

    def initial(self, x: Float[Tensor, "batch length dim"]) -> BlockRecurrentState:
        """The state before the first token."""
        none = x.new_zeros(len(x), 0, self.heads, self.dim // self.heads)
        bank = self.bank.to(state_dtype(x)).expand(len(x), -1, -1)
        return BlockRecurrentState(bank, keys=none, values=none, **self.bank_seen(bank, x.dtype))  # type: ignore[arg-type]

    def bias(self, kept: int, count: int) -> Float[Tensor, "1 heads count keys"]:
        """What is added to the logits of new tokens and of the keys before and at them, −∞ beyond the window."""
        places = torch.arange(kept + count, device=self.scales.device)
        apart = places[kept:, None] - places
        seen = (apart >= 0) & (apart < self.segment)
        return self.position.bias(places[kept:], places, self.heads).written().masked_fill(~seen, -math.inf)

    def read(
        self,
        heads: tuple[Heads, Heads, Heads, Heads],
        state: BlockRecurrentState,
        bias: Float[Tensor, "1 heads length keys"],
    ) -> tuple[Float[Tensor, "batch length two_dim"], BlockRecurrentState]:
        """What tokens of the open block read, and the state after them, renewed where they end the block."""
        q, q_cross, k, v = heads
        (keys, values), buffer = appended(state, (state.keys, state.values), (k, v))
        near = attend(q, keys, values, self.scales[0], bias)
        far = attend(q_cross, state.bank_keys, state.bank_values, self.scales[1])
        if keys.shape[1] % self.segment == 0:
            after = self.renewed(state, keys, values)
        else:
            after = replace(state, keys=keys, values=values)
        leave(after, buffer)
        return torch.cat([near, far], -1), after

    def renewed(self, state: BlockRecurrentState, keys: Heads, values: Heads) -> BlockRecurrentState:
        """The state after a block, whose keys and values stay for the next one."""
        named = self.bank_q_proj(self.named(state.bank, keys.dtype))
        q, q_cross = unit(named.unflatten(-1, (2, self.heads, -1))).unbind(2)
        own = attend(q, state.bank_keys, state.bank_values, self.bank_scales[0])
        b = torch.cat([own, attend(q_cross, keys, values, self.bank_scales[1])], -1)
        bank = state.bank if self.configuration == "single" else self.gate(b, state.bank)
        if self.configuration != "skip":
            inner = b if self.configuration == "single" else self.bank_mlp_norm(bank.to(b.dtype))
            bank = self.mlp_gate(F.relu(self.bank_up(inner)), bank)
        keys, values = keys[:, -self.segment :], values[:, -self.segment :]
        cut, passed = self.cut(state.passed)
        if cut:
            bank, keys, values = bank.detach(), keys.detach(), values.detach()
        return BlockRecurrentState(bank, keys=keys, values=values, passed=passed, **self.bank_seen(bank, keys.dtype))

    def named(self, bank: Float[Tensor, "batch states dim"], dtype: torch.dtype) -> Float[Tensor, "batch states dim"]:
        """RMSNorm(C) + P"""
        return self.bank_norm(bank.to(dtype)) + self.ids

    def bank_seen(self, bank: Float[Tensor, "batch states dim"], dtype: torch.dtype) -> dict[str, Heads]:
        """K_c and V_c."""
        k, v = self.bank_kv_proj(self.named(bank, dtype)).unflatten(-1, (2, self.heads, -1)).unbind(2)
        return {"bank_keys": unit(k), "bank_values": v}

    def state_nbytes(self, length: int) -> int:
        """The states with their keys and values, and keys and values of the block before and of the open one."""
        dtype = self.bank.dtype
        kept = length % self.segment + (self.segment if length >= self.segment else 0)
        wide = torch.promote_types(dtype, torch.float32).itemsize
        return self.dim * (self.states * (wide + 2 * dtype.itemsize) + 2 * kept * dtype.itemsize)

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"heads={self.heads}, block={self.segment}, states={self.states}, configuration={self.configuration}"


class Gate(nn.Module):
    """What becomes of a state c by what was read, h: see `BlockRecurrent`. bounded: with tanh(z) for z.

    The result has the dtype of c.
    """

    def __init__(self, width: int, dim: int, kind: str, bounded: bool = False) -> None:
        super().__init__()
        self.kind, self.bounded = kind, bounded
        self.z_proj = linear(width, dim, bias=True)
        if kind == "fixed":
            self.bias = nn.Parameter(0.1 * torch.randn(dim))
        else:
            self.i_proj, self.f_proj = (linear(width, dim, variance=0.1, bias=True) for _ in range(2))
            for projection in (self.i_proj, self.f_proj):
                nn.init.normal_(projection.bias, std=0.1)

    def forward(
        self, h: Float[Tensor, "batch states width"], c: Float[Tensor, "batch states dim"]
    ) -> Float[Tensor, "batch states dim"]:
        """The next state."""
        z = self.z_proj(h).to(c.dtype)
        z = z.tanh() if self.bounded else z
        if self.kind == "fixed":
            return torch.lerp(z, c, torch.sigmoid(self.bias.to(c.dtype)))
        i, f = (projection(h).to(c.dtype) for projection in (self.i_proj, self.f_proj))
        return torch.sigmoid(f + 1) * c + torch.sigmoid(i - 1) * z


def attend(
    q: Float[Tensor, "batch queries heads head_dim"],
    k: Float[Tensor, "batch keys heads head_dim"],
    v: Float[Tensor, "batch keys heads head_dim"],
    scale: Float[Tensor, " heads"],
    bias: Float[Tensor, "1 heads queries keys"] | None = None,
) -> Float[Tensor, "batch queries dim"]:
    """softmax(|a| q · k + bias) v, the heads side by side."""
    return dense(q * scale.abs()[:, None], k.to(q.dtype), v.to(q.dtype), 1.0, bias).flatten(2)


def unit(x: Float[Tensor, "... head_dim"]) -> Float[Tensor, "... head_dim"]:
    """x / √(Σ x² + eps) over each head."""
    wide = x.to(state_dtype(x))
    return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + EPS)).to(x.dtype)


def linear(width: int, out: int, *, variance: float = 1.0, bias: bool = False) -> nn.Linear:
    """A linear map that begins as `begin` has it, and a bias of 0."""
    layer = nn.Linear(width, out, bias=bias)
    begin(layer, variance)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def begin(layer: nn.Linear, variance: float = 1.0) -> None:
    """Draw a matrix from a normal distribution with a variance of so much over its width, cut off at two standard
    deviations."""
    deviation = math.sqrt(variance / layer.in_features) / TRUNCATED
    nn.init.trunc_normal_(layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation)


TRUNCATED = 0.87962566
"""Standard deviation of a standard normal that is cut off at ± 2."""
