"""Layers that work on a few important tokens in full, and on the others mostly as means of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lengthwise.contract import Layout, SequenceModule, StateTree
from lengthwise.errors import InputError, unknown
from lengthwise.mixers.attention import Attention
from lengthwise.models.stack import Residual
from lengthwise.ops.dense_attention import dense
from lengthwise.ops.patterns import full
from lengthwise.reducers.blocks import Blocks, Order, taken

SELECTIONS = ("attention", "random")

SHARE_EPS = 1e-5
"""What is added to the share of attention that a block gets before its logarithm is taken."""


@dataclass(frozen=True)
class Positions:
    """Where the rows of a short sequence are in their document: a block is at the mean of its tokens, rounded."""

    tokens: Int[Tensor, "rows blocks block"]
    blocks: Int[Tensor, "rows blocks"]
    places: Int[Tensor, "rows places"]

    @staticmethod
    def of(order: Order, positions: Int[Tensor, "rows length"]) -> Positions:
        """Those of an order of tokens."""
        placed = order.take(positions).masked_fill(~order.there, 0)
        tokens = placed[:, order.places :].unflatten(1, (order.blocks, order.block))
        there = order.there[:, order.places :].unflatten(1, (order.blocks, order.block))
        mean = tokens.sum(2) / there.sum(2).clamp_min(1)
        return Positions(tokens, mean.round().long(), placed[:, : order.places])


class Vcc(SequenceModule):
    """Layers of an encoder on a shorter sequence: VIP-token centric compression.

    The marked tokens (a question, masked places, a class token) and the first others fill P places; the rest stands in
    T blocks of b neighbours, each known by its mean c̄_t and the differences of its tokens. In each layer, with the
    layer's own weights:

        s_t = 1/(heads P) Σ_{h, marked i} softmax_t(q_i · k(c̄_t) / √d)              z_t = log(s_t + 1e-5)
        X = [the tokens of the h blocks with the greatest z ; c̄_t of the others ; the P places]
        p_ij = softmax_j(q_i · k_j / √d + log(n_j + ε) + log(σ_j + ε))                n_j: b for a mean, else 1
        a = W_o Σ_j p_ij v_j          X' = X + σ (a + MLP(norm(a + X)))

    and X' is taken back into blocks (`lengthwise.reducers.blocks`): what was fine is compressed anew, and the tokens of
    a coarse block move as far as its mean does. After the last layer every token is restored. σ = 1; in training it has
    the gradient of softmax(z)_t for fine rows and of its complement for coarse ones, so that the choice learns.

    layers: residual branches, each an `attention` that sees everything and then a part that acts on each token alone.
    Nothing is added to their parameters, which stay in the same order as without the wrapper.
    block: b. fine: h, all blocks where there are fewer. places: P. select: "attention", or "random" to choose fine
    blocks by chance, as a measure of the choice. explore: share of rows whose blocks are chosen by chance in training.
    eps: ε, of the logarithms and of the means' counts.

    Marked are the tokens that `layout.marked` says; without one, the first of each document. Documents of a row are
    compressed each on its own, and padding is left out and stays as it is.
    r = h b + T − h + P rows go through a layer of L tokens. Zeng et al. 2023, arXiv 2305.04241.
    Raises InputError for sizes below 1, other layers, and more marked tokens in a document than places.
    """

    causal = False
    residual = False

    def __init__(
        self,
        layers: Sequence[SequenceModule],
        *,
        block: int = 16,
        fine: int = 90,
        places: int = 16,
        select: str = "attention",
        explore: float = 0.1,
        eps: float = 1e-4,
    ) -> None:
        super().__init__()
        for name, (size, least) in {"block": (block, 1), "fine": (fine, 0), "places": (places, 1)}.items():
            if size < least:
                raise InputError(f"{name} must be at least {least}, got {size}")
        if select not in SELECTIONS:
            raise unknown("selection", select, SELECTIONS)
        if not 0 <= explore <= 1:
            raise InputError(f"explore is a share between 0 and 1, got {explore}")
        check_layers(layers)
        self.layers = nn.ModuleList(layers)
        self.block, self.fine, self.places = block, fine, places
        self.select, self.explore, self.eps = select, explore, eps

    def rows(self, length: int) -> int:
        """r, the rows that go through a layer, for a document of so many tokens."""
        blocks = max(0, -(-(length - self.places) // self.block))
        fine = min(self.fine, blocks)
        return fine * self.block + blocks - fine + self.places

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: StateTree = None,  # noqa: ARG002
        layout: Layout | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], StateTree]:
        """Every token after all layers; no state, since both sides are seen."""
        if not x.shape[1]:
            return x, None
        if layout is None:
            place = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
            return self._documents(x, torch.ones_like(place, dtype=torch.bool), place == 0, place), None
        index, there = rows_of_documents(layout)
        if not index.numel():
            return x, None
        marked = layout.starts if layout.marked is None else layout.marked
        own, marks, positions = (t.flatten(0, 1)[index] for t in (x, marked, layout.positions))
        y = self._documents(own, there, marks & there, positions)
        return x.flatten(0, 1).index_put((index[there],), y[there]).unflatten(0, x.shape[:2]), None

    def _documents(
        self,
        x: Float[Tensor, "rows length dim"],
        there: Bool[Tensor, "rows length"],
        marked: Bool[Tensor, "rows length"],
        positions: Int[Tensor, "rows length"],
    ) -> Float[Tensor, "rows length dim"]:
        """All layers, for rows of one document each."""
        if not torch.compiler.is_compiling() and marked.numel() and (most := int(marked.sum(1).max())) > self.places:
            raise InputError(f"{most} tokens of a document are marked and there are {self.places} places for them")
        order = Order.of(there, marked, self.places, self.block)
        blocks = Blocks.of(x, order, self.eps)
        at = Positions.of(order, positions)
        branches = list(self.layers)
        for attend, act in zip(branches[::2], branches[1::2], strict=True):
            blocks = self._layer(blocks, at, attend, act)  # type: ignore[arg-type]  # checked when they were given
        return blocks.restored(x)

    def _layer(self, blocks: Blocks, at: Positions, attend: Residual, act: Residual) -> Blocks:
        z = self._choice(blocks, at, attend)
        seen = blocks.there.any(2)
        chosen, others = self.split(z, seen)
        tokens = blocks.fine(chosen)
        x = torch.cat([tokens.flatten(1, 2), taken(blocks.means, others), blocks.important], 1)
        there = torch.cat(
            [taken(blocks.there, chosen).flatten(1), taken(seen, others), blocks.order.there[:, : self.places]], 1
        )
        where = torch.cat([taken(at.tokens, chosen).flatten(1), taken(at.blocks, others), at.places], 1)
        sizes = (chosen.shape[1] * self.block, others.shape[1], self.places)
        score = self._scores(z, seen, chosen, others) if self.training else x.new_ones(1, x.shape[1])
        copies = torch.cat([x.new_full((size,), n) for size, n in zip(sizes, (1, self.block, 1), strict=True)])
        bias = ((copies + self.eps).log() + (score + self.eps).log()).masked_fill(~there, -torch.inf)
        a = attention(attend, x, where, bias[:, None, None])
        y = x + score[..., None] * (a + act.part(act.norm(x + a))[0])
        fine, coarse, important = y.split(sizes, 1)
        return blocks.after(chosen, fine.unflatten(1, (-1, self.block)), others, coarse, important)

    def _choice(self, blocks: Blocks, at: Positions, attend: Residual) -> Float[Tensor, "rows blocks"]:
        """z, by the layer's own queries of the marked places and keys of the means."""
        part: Attention = attend.part  # type: ignore[assignment]
        q = part.q_proj(attend.norm(blocks.important)).unflatten(-1, (part.heads, part.head_dim))
        k = part.k_proj(attend.norm(blocks.means)).unflatten(-1, (part.kv_heads, part.head_dim))
        q, k, bias = positioned(part, q, k, at.places, at.blocks)
        k = k.repeat_interleave(part.heads // part.kv_heads, 2)
        logits = torch.einsum("nihd,njhd->nhij", q, k) * (part.head_dim**-0.5 if part.scale is None else part.scale)
        logits = logits if bias is None else logits + bias.to(logits.dtype)
        seen = blocks.there.any(2)[:, None, None]
        p = logits.masked_fill(~seen, -torch.inf).softmax(-1).masked_fill(~seen, 0)
        marked = blocks.order.marked[:, :, None].to(p.dtype)
        return ((p.mean(1) * marked).sum(1) / self.places + SHARE_EPS).log()

    def split(
        self, z: Float[Tensor, "rows blocks"], seen: Bool[Tensor, "rows blocks"]
    ) -> tuple[Int[Tensor, "rows fine"], Int[Tensor, "rows coarse"]]:
        """The blocks to work on token by token, and the others."""
        key = z.detach()
        if self.select == "random" or (self.training and self.explore):
            share = 1.0 if self.select == "random" else self.explore
            by_chance = torch.rand(len(z), 1, device=z.device) < share
            key = torch.where(by_chance, torch.rand_like(key), key)
        order = key.masked_fill(~seen, -torch.inf).argsort(dim=1, descending=True, stable=True)
        fine = min(self.fine, z.shape[1])
        return order[:, :fine], order[:, fine:]

    def _scores(self, z: Tensor, seen: Tensor, chosen: Tensor, others: Tensor) -> Float[Tensor, "rows short"]:
        """σ of every row: 1, with the gradient of its block's share."""
        share = z.masked_fill(~seen, -torch.inf).softmax(-1).masked_fill(~seen, 0)
        fine, coarse = taken(share, chosen).repeat_interleave(self.block, 1), 1 - taken(share, others)
        gone = torch.cat([fine, coarse, z.new_zeros(len(z), self.places)], 1)
        return 1 + (gone - gone.detach())

    def state_nbytes(self, length: int) -> int:  # noqa: ARG002
        """Nothing is kept."""
        return 0

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"block={self.block}, fine={self.fine}, places={self.places}, select={self.select}"


def check_layers(layers: Sequence[SequenceModule]) -> None:
    """Raise InputError unless these are pairs of attention to everything and of what acts on each token alone."""
    if not layers or len(layers) % 2:
        raise InputError(f"layers come in pairs, as attention + mlp, got {len(layers)} parts")
    for number, layer in enumerate(layers):
        part = layer.part if type(layer) is Residual else None
        if number % 2 == 0 and not (type(part) is Attention and not part.causal and part.pattern == full()):
            raise InputError(
                "the first of each pair must be an attention that sees everything, with its norm before it"
            )
        if number % 2 and (part is None or part.receptive_field != 1):
            raise InputError(
                "the second of each pair must act on each token alone, as mlp or swiglu, with its norm before"
            )


def positioned(
    part: Attention,
    q: Float[Tensor, "rows queries heads head_dim"],
    k: Float[Tensor, "rows keys kv_heads head_dim"],
    q_positions: Int[Tensor, "rows queries"],
    k_positions: Int[Tensor, "rows keys"],
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Queries and keys turned to their positions, and what the position adds to the logits."""
    encoding = part.position
    if encoding is None:
        return q, k, None
    q, k = encoding.rotate(q, k, q_positions, k_positions)
    added = encoding.bias(q_positions, k_positions, part.heads)
    return q, k, None if added is None else added.written()


def attention(
    attend: Residual,
    x: Float[Tensor, "rows short dim"],
    positions: Int[Tensor, "rows short"],
    bias: Float[Tensor, "#rows 1 1 short"],
) -> Float[Tensor, "rows short dim"]:
    """What an attention adds to rows that stand for one token or for several. bias: of each row as a key."""
    part: Attention = attend.part  # type: ignore[assignment]
    q, k, v = part.project(attend.norm(x))
    q, k, added = positioned(part, q, k, positions, positions)
    bias = bias.to(q.dtype) if added is None else (bias + added).to(q.dtype)
    return part.o_proj(dense(q, k, v, part.scale, bias).flatten(2))


def rows_of_documents(
    layout: Layout,
) -> tuple[Int[Tensor, "documents longest"], Bool[Tensor, "documents longest"]]:
    """The tokens of each document as indices into all tokens, and where there is one. Padding is no document."""
    row, begin, size = layout.runs()
    place = torch.arange(int(size.max()) if len(size) else 0, device=size.device)
    there = place < size[:, None]
    return torch.where(there, (row * layout.documents.shape[1] + begin)[:, None] + place, 0), there
