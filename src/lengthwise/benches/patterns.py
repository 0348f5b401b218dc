"""What attention by patterns costs: the executor of tiles, and a layer of Longformer."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from lengthwise.benches.attention import DIM, FRAMEWORK, HEADS, products, trained
from lengthwise.benches.row import Row
from lengthwise.measure import interleaved, matmul_rate, peak_bytes
from lengthwise.models.build import build
from lengthwise.ops.pattern import Pattern
from lengthwise.ops.patterns import blocks, causal, dilated, fixed, global_tokens, strided, window
from lengthwise.ops.sparse_attention import sparse_attention
from lengthwise.ops.tiles import frames_of

PATTERNS = {
    "causal": causal(),
    "window of 256": causal() & window(256),
    "window of 512": causal() & window(512),
    "window of 128 to each side, 4 global tokens": window(128, 128) | global_tokens(0, 1, 2, 3),
    "blocks of 256 and the one before": causal() & blocks(256, previous=1),
    "fixed, blocks of 128 and the last 8 of each": causal() & (blocks(128) | fixed(128, 8)),
    "strided by 128 and a window": causal() & (window(128) | strided(128)),
    "window of 64, each 4 further": causal() & dilated(4, 64),
}


def patterns(length: int = 8192, repeats: int = 5) -> Iterator[Row]:
    """Each pattern forward and backward, by the rate of the framework's dense kernel on each pair that is visited."""
    rate = matmul_rate()
    q, k, v, grad = (torch.randn(1, length, HEADS, DIM) for _ in range(4))
    jobs = {name: trained(_executed(pattern, length), q, k, v, grad) for name, pattern in PATTERNS.items()}
    times = interleaved({FRAMEWORK: trained(_dense, q, k, v, grad), **jobs}, repeats=repeats, limit=150)
    for name, pattern in PATTERNS.items():
        found = frames_of(pattern, length, length, q.device)
        visited = sum(frame.tiles.pairs for frame in found)
        sizes = ", ".join(f"{f.tiles.count} tiles of {f.tiles.height} by {f.tiles.width}" for f in found)
        extra = peak_bytes(jobs[name]) / (5 * 4 * q.numel())
        yield Row(
            f"sparse_attention forward and backward, {name}, L {length}, {HEADS} heads of {DIM}",
            times[name],
            {
                f"dense {FRAMEWORK}": times[FRAMEWORK] / times[name],
                "the same, for each pair visited": times[FRAMEWORK] / length**2 / (times[name] / visited),
            },
            products(pattern.entries(length)) / times[name] / rate,
            "matrix products, float32",
            f"{sizes}; peak of {extra:.1f} times the output and the gradients",
        )


def longformer(length: int = 4096, dim: int = 768, heads: int = 12, repeats: int = 3) -> Iterator[Row]:
    """A layer of Longformer's encoder with a window of 512, forward and backward, against transformers' layer."""
    ours = build(f"longformer(heads={heads}, window=256) + mlp", dim, causal=False, norm="layernorm")
    theirs = transformers_layer(dim, heads)
    x = torch.randn(1, length, dim, requires_grad=True)
    seen = torch.zeros(1, length)
    where = {"is_index_masked": seen < 0, "is_index_global_attn": seen > 0, "is_global_attn": False}
    jobs = {
        "ours": _stepped(lambda: ours(x)[0], x, ours),
        "transformers": _stepped(lambda: theirs(x, attention_mask=seen, **where)[0], x, theirs),
    }
    times = interleaved(jobs, repeats=repeats, limit=120)
    weights = sum(p.numel() for name, p in ours.named_parameters() if p.ndim == 2 and "global" not in name)
    flops = 3 * 2 * length * weights + products(window(256, 256).entries(length)) * dim // (HEADS * DIM)
    yield Row(
        f"longformer layer forward and backward, window 512, L {length}, dim {dim}",
        times["ours"],
        {"transformers": times["transformers"] / times["ours"]},
        flops / times["ours"] / matmul_rate(),
        "matrix products, float32",
        "without global tokens",
    )


def transformers_layer(dim: int, heads: int) -> nn.Module:
    """transformers' layer with random weights."""
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerLayer

    config = LongformerConfig(
        hidden_size=dim,
        num_attention_heads=heads,
        intermediate_size=4 * dim,
        attention_window=[512],
        num_hidden_layers=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return LongformerLayer(config, 0)


def _stepped(forward: Callable[[], Tensor], x: Tensor, model: nn.Module) -> Callable[[], None]:
    """A function that runs a forward and a backward pass, and forgets the gradients."""

    def step() -> None:
        forward().sum().backward()
        x.grad = None
        model.zero_grad(set_to_none=True)

    return step


def _executed(pattern: Pattern, length: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda q, k, v: sparse_attention(q, k, v, frames_of(pattern, length, length, q.device))


def _dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of every query to every key by PyTorch's kernel."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v).transpose(1, 2)
