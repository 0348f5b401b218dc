"""Softmax attention with many heads, with fewer key-value heads, or with one."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lengthwise.caches.context import Context
from lengthwise.caches.full import FullCache
from lengthwise.caches.selective import SelectiveCache
from lengthwise.caches.sums import add_sums, channels, split_sums
from lengthwise.caches.windowed import WindowedCache
from lengthwise.contract import Layout, SequenceModule
from lengthwise.errors import InputError
from lengthwise.mixers.heads import check_heads
from lengthwise.ops.attention import attention
from lengthwise.ops.bias import Bias
from lengthwise.ops.linear import Linear, together
from lengthwise.ops.pattern import Pattern
from lengthwise.ops.patterns import causal as up_to_itself
from lengthwise.ops.patterns import full, window
from lengthwise.positions.position import Position
from lengthwise.positions.temperature import Temperature, as_temperature

AttentionCache = FullCache | WindowedCache | SelectiveCache
"""What softmax attention keeps, by its pattern."""


class Attention(SequenceModule):
    """Softmax attention in h heads that share g heads of keys and values.

        q_i = W_q x_i   k_i = W_k x_i   v_i = W_v x_i          q: h heads of width d, k and v: g heads
        o_i = Σ_j p_ij v_j      p_ij = softmax over the j that i sees, of q_i · k_j / √d + b_ij      y = W_o o

    Head a of q uses head ⌊a g / h⌋ of k and v: g = h is multi-head attention, g = 1 multi-query (Shazeer 2019,
    arXiv 1911.02150), between them grouped-query (Ainslie et al. 2023, arXiv 2305.13245). Vaswani et al. 2017,
    arXiv 1706.03762.

    heads: h, chosen near a width of 64 where it is None. kv_heads: g, h by default. head_dim: d, dim / h by default.
    window: sees the token itself and the window − 1 before it, and as many after it where attention isn't causal.
    pattern: narrows further who is seen, as `window(512) | first(4)`.
    position: turns queries and keys, adds b, or narrows the pattern. causal: sees nothing that comes later.
    scale: what q_i · k_j is multiplied by, 1/√d by default. temperature: what the whole of a logit is divided by, a
    number or a law such as `log_scaling(trained=512)`. bias: whether the four linear maps have one.
    depth: the number of residual branches of the model.
    W_q, W_k and W_v begin as N(0, 0.02), W_o as N(0, 0.02 / √depth), biases as 0.

    State: `FullCache`, 2 L g d numbers; `WindowedCache` where the pattern is a window with at most first keys beside
    it; `SelectiveCache` where it shows only some of the past in another way, as blocks or fixed places. A position that
    sums steps keeps h sums beside the keys of each token, and always those of the latest. Raises InputError for heads
    that don't divide, and windows of less than one token.
    """

    inherits: ClassVar[tuple[str, ...]] = ("causal", "position", "depth")
    sharpens: ClassVar[bool] = True
    """Whether it divides its logits by `temperature`."""

    def __init__(
        self,
        dim: int,
        *,
        heads: int | None = None,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        window: int | None = None,
        pattern: Pattern | None = None,
        position: Position | None = None,
        causal: bool = True,
        scale: float | None = None,
        temperature: Temperature | float | None = None,
        bias: bool = False,
        depth: int = 1,
    ) -> None:
        super().__init__()
        self.scale, self.temperature = scale, as_temperature(temperature)
        self.heads, self.kv_heads, self.head_dim = _head_sizes(dim, heads, kv_heads, head_dim)
        if position is not None and position.has("rotate"):
            position.require(self.head_dim)
        self.position = position
        self.causal = causal
        self.pattern = _pattern(causal, window, pattern, position)
        if self.heads % len(self.pattern.heads):
            raise InputError(f"{len(self.pattern.heads)} patterns must divide the heads, got {self.heads} heads")
        self.remembered = _remembered(self.pattern, position)
        self.window, self.first = _kept(self.remembered) if causal else (None, 0)
        self.keeps_all = not causal or self.remembered.lasts
        self.compiles = self.keeps_all or self.window is not None  # type: ignore[misc]  # else values tell what is kept
        if position is not None and position.has("steps") and (self.pattern.band is None or self.pattern.band[2]):
            self.breaks = {"pattern": "sums of steps pass over tokens that aren't seen"}  # type: ignore[misc]
        self.growth = "window" if causal and self.pattern.bounded else "linear"
        self.chunk = None if self.keeps_all else self.pattern.period
        self.receptive_field = self.pattern.receptive_field() if causal else None
        query_dim, key_dim = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.q_proj = Linear(dim, query_dim, bias=bias)
        self.k_proj = Linear(dim, key_dim, bias=bias)
        self.v_proj = Linear(dim, key_dim, bias=bias)
        self.o_proj = Linear(query_dim, dim, bias=bias)
        for projection in (self.q_proj, self.k_proj, self.v_proj, self.o_proj):
            nn.init.normal_(projection.weight, std=0.02 / (math.sqrt(depth) if projection is self.o_proj else 1))
            if bias:
                nn.init.zeros_(projection.bias)

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: AttentionCache | None = None,
        layout: Layout | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], AttentionCache | None]:
        """Every token's output, and the cache after them, which is None where attention isn't causal."""
        q, k, v = self.project(x)
        begun, position = state if self.causal else None, self.position
        cache, hooks = self.empty(k, v) if begun is None else begun, () if position is None else position.hooks
        factor = 1.0
        if self.temperature is not None or "rotate" in hooks:
            places = cache.places(x.shape[1], layout)
            q, k = (q, k) if position is None else position.rotate(q, k, places, places)
            q, factor = self.sharpened(q, places)
        if position is not None and "steps" in hooks:
            k = add_sums(k, position.steps(x, self.heads), cache.keys, layout)
            cache = self.empty(k, v) if begun is None else begun
        after: AttentionCache
        if isinstance(cache, SelectiveCache):
            context, after = cache.extend(k, v, self.remembered, layout)
        else:
            context, after = cache.extend(k, v, layout)
        documents = context.documents
        keys, bias = self.keys_and_bias(context, x.shape[1])
        k, v = (t if t.dtype == q.dtype else t.to(q.dtype) for t in (keys, context.values))
        o = self.attend(
            q,
            k,
            v,
            pattern=self.pattern,
            bias=bias if bias is None or factor == 1 else bias.scaled(factor),
            scale=(self.head_dim**-0.5 if self.scale is None else self.scale) * factor,
            query_documents=None if documents is None else documents[:, documents.shape[1] - x.shape[1] :],
            key_documents=documents,
            positions=None if context.consecutive else context.positions,
        )
        return self.o_proj(o.flatten(2)), after if self.causal else None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
        """What queries read of keys and values: `ops.attention`. To watch a layer, put a function in its place."""
        return attention(q, k, v, **how)

    def project(
        self, x: Float[Tensor, "batch length dim"]
    ) -> tuple[
        Float[Tensor, "batch length heads head_dim"],
        Float[Tensor, "batch length kv_heads head_dim"],
        Float[Tensor, "batch length kv_heads head_dim"],
    ]:
        """q, k and v."""
        q, k, v = together(x, (self.q_proj, self.k_proj, self.v_proj))
        batch, length, _ = x.shape
        shared = (batch, length, self.kv_heads, self.head_dim)
        return q.view(batch, length, self.heads, self.head_dim), k.view(shared), v.view(shared)

    def empty(self, k: Tensor, v: Tensor) -> AttentionCache:
        """The cache before the first token."""
        if self.window is not None:
            return WindowedCache.empty(self.window, self.first, k, v)
        return FullCache.empty(k, v) if self.keeps_all else SelectiveCache.empty(k, v)

    def sharpened(self, q: Tensor, places: Tensor) -> tuple[Tensor, float]:
        """Queries multiplied by what the temperature makes of each, and what it multiplies all logits by."""
        if self.temperature is None:
            return q, 1.0
        if self.temperature.varies and self.position is not None and self.position.has("bias"):
            raise InputError(
                f"{type(self.temperature).__name__} is multiplied into the queries, and {type(self.position).__name__} "
                "adds to the logits; give a temperature that is the same for all, or another position"
            )
        factor = self.temperature.factor(places, self.training)
        if not isinstance(factor, Tensor):
            return q, factor
        return q * factor[..., None, None].to(q.dtype), 1.0

    def keys_and_bias(self, context: Context, count: int) -> tuple[Tensor, Bias | None]:
        """The keys, and what the position encoding adds to the logits of the last `count` of their tokens."""
        keys, encoding, sums = context.keys, self.position, None
        if encoding is None or not encoding.has("bias"):
            return keys, None
        if encoding.has("steps"):
            keys, of_keys = split_sums(keys, self.head_dim, self.heads)
            sums = of_keys[:, of_keys.shape[1] - count :], of_keys
        places, length = context.positions, keys.shape[1]
        # By distance one count does for all rows, whatever documents are packed there.
        counted = places is None or (encoding.by_distance and context.consecutive)
        if counted and count == 1:
            added = encoding.last_bias(length, self.heads, keys.device, sums)
        else:
            if places is None or counted:
                places = torch.arange(length, device=keys.device)[None]
            added = encoding.bias(places[:, length - count :], places, self.heads, sums)
        if added is None:
            raise InputError(f"{type(encoding).__name__} names the hook 'bias' and gives none")
        return keys, added

    def state_nbytes(self, length: int) -> int:
        """Keys and values of all tokens, or of those that later ones can see, and places of what isn't in a row."""
        if not self.causal:
            return 0
        near, far, places = length, 0, 0
        if self.window is not None:
            near, far = min(length, self.window - 1), min(length, self.first)
        elif not self.keeps_all:
            near, far = self.remembered.kept(length)
            places = 8 * far
        weight, more = self.k_proj.weight, 0
        if self.position is not None and self.position.has("steps"):
            more = channels(self.heads, self.kv_heads, weight.dtype)
        return (near + far) * self.kv_heads * (2 * self.head_dim + more) * weight.element_size() + places

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"heads={self.heads}, kv_heads={self.kv_heads}, head_dim={self.head_dim}, pattern={self.pattern}"


def _head_sizes(dim: int, heads: int | None, kv_heads: int | None, head_dim: int | None) -> tuple[int, int, int]:
    if head_dim is None:
        heads, kv_heads = check_heads(dim, heads, kv_heads)
        return heads, kv_heads, dim // heads
    if head_dim < 1:
        raise InputError(f"head_dim must be at least 1, got {head_dim}")
    if heads is None and dim % head_dim:
        raise InputError(f"head_dim must divide dim where heads isn't given: got head_dim={head_dim} and dim={dim}")
    heads = dim // head_dim if heads is None else heads
    return *check_heads(heads * head_dim, heads, kv_heads), head_dim


def _pattern(causal: bool, size: int | None, pattern: Pattern | None, position: Position | None) -> Pattern:
    """All that narrows who is seen, together."""
    narrowed = up_to_itself() if causal else full()
    if size is not None:
        past = window(size)
        narrowed = narrowed & (past if causal else window(size - 1, size - 1))
    encoded = position.pattern() if position is not None and position.has("pattern") else None
    for further in (pattern, encoded):
        narrowed = narrowed if further is None else narrowed & further
    return narrowed


def _remembered(pattern: Pattern, position: Position | None) -> Pattern:
    """What shows all keys that have to be kept: with sums that run along, the latest one too, where they go on."""
    return pattern | window(2) if position is not None and position.has("steps") else pattern


def _kept(pattern: Pattern) -> tuple[int | None, int]:
    """The window and the number of first keys that suffice for a pattern, None where all keys are needed."""
    band = pattern.band
    if band is None or band[0] is None:
        return None, 0
    return band[0] + 1, band[2]
