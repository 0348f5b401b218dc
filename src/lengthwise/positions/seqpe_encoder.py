"""The encoder of sequential positions: a small Transformer that reads a position as its string of decimal digits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from lengthwise.errors import InputError
from lengthwise.ops.gelu_mlp import gelu_mlp
from lengthwise.ops.listed_attention import listed_attention

HEAD = 64
"""The width of a head of the encoder."""


@dataclass(frozen=True)
class Strings:
    """The tokens of many strings, where strings that begin alike share the tokens of what they have in common.

    Tokens stand level by level: all first symbols, all second ones, …, and at the end a summary for each string.
    symbols: which row of the table of symbols each token is. seen: for each token the places of those of its string
    that it can see, up to itself. hidden: True where there is none, since the token comes early. strings: how many
    there are.
    """

    symbols: Int[Tensor, " tokens"]
    seen: Int[Tensor, "tokens levels"]
    hidden: Bool[Tensor, "tokens levels"]
    strings: int

    @staticmethod
    def of(codes: Int[Tensor, " strings"], length: int, *, share: bool) -> Strings:
        """The strings of `length` digits that write these numbers, which must be in order if they share."""
        device, levels = codes.device, [codes]
        parents: list[Tensor] = []  # from the last level but one to the first
        for _ in range(length - 1):
            above = levels[-1] // 10
            if share:
                above, parent = torch.unique_consecutive(above, return_inverse=True)
            else:
                parent = torch.arange(len(above), device=device)
            levels.append(above)
            parents.append(parent)
        levels, parents = levels[::-1], parents[::-1]
        symbols = [10 * place + level % 10 for place, level in enumerate(levels)]
        symbols.append(torch.full_like(codes, 10 * length))
        begin, sees, begins = torch.empty(0, device=device, dtype=torch.long), [], 0
        for level, numbers in enumerate(levels):
            own = begins + torch.arange(len(numbers), device=device)
            begin = own[:, None] if level == 0 else torch.cat([begin[parents[level - 1]], own[:, None]], dim=1)
            sees.append(torch.cat([begin, own[:, None].expand(-1, length - level)], dim=1))
            begins += len(numbers)
        own = begins + torch.arange(len(codes), device=device)
        sees.append(torch.cat([begin, own[:, None]], dim=1))
        seen = torch.cat(sees)
        depth = torch.cat([torch.full_like(line[:, 0], level) for level, line in enumerate(sees)])
        hidden = torch.arange(length + 1, device=device) > depth[:, None]
        return Strings(torch.cat(symbols), seen, hidden, len(codes))


class Block(nn.Module):
    """A pre-norm Transformer block over the tokens of `Strings`.

    x ← x + W_o attention(LN(x))          x ← x + W_2 gelu(W_1 LN(x)), gelu in its tanh form
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.heads = max(1, width // HEAD)
        self.attention_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv_proj, self.o_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "tokens width"], strings: Strings, asked: slice) -> Float[Tensor, "asked width"]:
        """What comes out at the tokens that are asked for."""
        z, width = self.attention_norm(x), x.shape[1]
        (of_q, of_kv), (q_bias, kv_bias) = (
            y.split([width, 2 * width]) for y in (self.qkv_proj.weight, self.qkv_proj.bias)
        )
        q = functional.linear(z[asked], of_q, q_bias).unflatten(-1, (self.heads, -1))
        kv = functional.linear(z, of_kv, kv_bias).unflatten(-1, (2, self.heads, -1))
        o = listed_attention(q, kv, strings.seen[asked], strings.hidden[asked])
        return self.finished(x[asked] + self.dropout(self.o_proj(o.flatten(1))))

    def of_symbols(
        self, x: Float[Tensor, "symbols width"], strings: Strings, asked: slice
    ) -> Float[Tensor, "asked width"]:
        """The same where each token is a row of x, its symbol: what any two of them make of each other is computed
        once, and tokens differ in which they see."""
        of_each = self.qkv_proj(self.attention_norm(x)).chunk(3, dim=-1)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(0, 1) for y in of_each)
        own = strings.symbols[asked]
        logits = functional.embedding(own, (q @ k.mT * q.shape[-1] ** -0.5).transpose(0, 1).flatten(1))
        hidden = logits.new_full((len(own), len(x)), -torch.inf)
        hidden.scatter_(1, strings.symbols[strings.seen[asked]], 0)
        p = (logits.unflatten(1, (self.heads, -1)) + hidden[:, None]).softmax(-1)
        read = v @ self.o_proj.weight.unflatten(1, (self.heads, -1)).permute(1, 2, 0)
        o = torch.addmm(self.o_proj.bias, p.flatten(1), read.flatten(0, 1))
        return self.finished(functional.embedding(own, x) + self.dropout(o))

    def finished(self, x: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens width"]:
        """What the second half of the block adds."""
        weights = self.up.weight, self.up.bias, self.down.weight, self.down.bias
        return x + self.dropout(gelu_mlp(self.norm(x), *weights))


class DigitEncoder(nn.Module):
    """Positions of one or more dimensions, read as their decimal digits.

        n = Σ_k s_k 10^(M−1−k)      h_k = E[s_k] + F[k] (+ A[axis of k])      h_last = c
        e(n) = W LN(blocks(h))_last + b

    A position of several axes is the concatenation of their strings. E: [10, width], F: [axes · M, width],
    A: [axes, width] where there is more than one axis, c: [width]. Each token sees those before it and itself, so that
    what numbers with the same first digits have in common is computed once; of the last block only the summary is.

    outputs: the width of e. positions: P of each axis; M is the number of digits of P − 1. blocks: how many, with heads
    of width 64. dropout: on the residual branches in training; 0.1 in the published language models.
    All weights begin as N(0, 0.02), biases as 0. E, F and A are kept from weight decay.

    Raises InputError for sizes below 1, a width above 64 that 64 doesn't divide, more than 18 digits, and positions
    below 0 or from P on.
    """

    def __init__(
        self,
        outputs: int,
        *,
        width: int = HEAD,
        blocks: int = 2,
        positions: int = 20_000,
        axes: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = {"outputs": outputs, "width": width, "blocks": blocks, "positions": positions, "axes": axes}
        for name, size in sizes.items():
            if size < 1:
                raise InputError(f"{name} must be at least 1, got {size}")
        if width > HEAD and width % HEAD:
            raise InputError(f"width must be at most {HEAD}, or a multiple of it, got {width}")
        self.positions, self.axes, self.digits = positions, axes, len(str(positions - 1))
        if self.axes * self.digits > 18:
            raise InputError(f"{axes} axes of {positions} positions have {self.axes * self.digits} digits; 18 will do")
        self.tokens = nn.Parameter(torch.empty(10, width))
        self.places = nn.Parameter(torch.empty(axes * self.digits, width))
        self.axis = nn.Parameter(torch.empty(axes, width)) if axes > 1 else None
        self.summary = nn.Parameter(torch.empty(width))
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, outputs)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        for table in (self.tokens, self.places, self.axis, self.summary):
            if table is not None:
                nn.init.normal_(table, std=0.02)
                table.no_weight_decay = True  # type: ignore[attr-defined]
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, positions: Int[Tensor, "n axes"]) -> Float[Tensor, "n outputs"]:
        """e of each position, given by its coordinates."""
        if torch.compiler.is_compiling():  # what is shared depends on values, which a compiled graph can't read
            return self.read(Strings.of(self.codes(positions), self.axes * self.digits, share=False))
        if not len(positions):
            return self.head.weight.new_zeros(0, self.head.out_features)
        low, high = (int(bound) for bound in positions.aminmax())
        if low < 0 or high >= self.positions:
            raise InputError(
                f"seqpe writes positions from 0 to {self.positions - 1}, got {low if low < 0 else high}; build it with "
                f"positions={max(high + 1, 1)} or more"
            )
        codes = self.codes(positions)
        rows = None
        if not bool((codes.diff() > 0).all()):
            codes, rows = torch.unique(codes, return_inverse=True)
        e = self.read(Strings.of(codes, self.axes * self.digits, share=True))
        return e if rows is None else functional.embedding(rows, e)

    def codes(self, positions: Int[Tensor, "n axes"]) -> Int[Tensor, " n"]:
        """The number whose digits are those of all axes one after the other."""
        base = 10**self.digits
        return sum((positions[:, axis] * base ** (self.axes - 1 - axis) for axis in range(self.axes)), start=0)  # type: ignore[return-value]

    def read(self, strings: Strings) -> Float[Tensor, "strings outputs"]:
        """What the blocks make of strings of digits."""
        places = self.places if self.axis is None else self.places + self.axis.repeat_interleave(self.digits, dim=0)
        x = torch.cat([(places[:, None] + self.tokens).flatten(0, 1), self.summary[None]])
        tokens, summaries = slice(None), slice(len(strings.seen) - strings.strings, None)
        for number, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            form = block.of_symbols if number == 0 else block.forward
            x = form(x, strings, summaries if number == len(self.blocks) - 1 else tokens)
        return self.head(self.norm(x))
