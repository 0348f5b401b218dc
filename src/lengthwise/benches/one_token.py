"""Benchmarks of what a token that is decoded alone passes through: linear maps of one vector, norms and attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.nn import functional

from lengthwise.benches.row import Row
from lengthwise.measure import interleaved, read_bandwidth
from lengthwise.ops.dense_attention import dense
from lengthwise.ops.linear import linear as ours
from lengthwise.ops.rms_norm import rms_norm as our_norm
from lengthwise.ops.step_attention import step_attention

LLAMA = ((960, 576), (576, 576), (3072, 576), (576, 1536))
"""The linear maps of a layer of a Llama of 135 million weights: outputs and features."""


@torch.inference_mode()
def linear(shapes: Sequence[tuple[int, int]] = LLAMA, layers: int = 30, large: int = 2**17) -> Iterator[Row]:
    """One vector through the maps of all layers, whose weights are in no cache, and through one large map."""
    some = [torch.randn(shape) for _ in range(layers) for shape in shapes]
    yield maps(f"linear, one vector, {layers} layers of a Llama, {len(some)} maps", some)
    yield maps(f"linear, one vector, {large} × {shapes[0][1]}", [torch.randn(large, shapes[0][1])])


def maps(name: str, weights: Sequence[torch.Tensor]) -> Row:
    """One vector through each of several maps, against PyTorch's and the reading of as many bytes."""
    vectors = {width: torch.randn(1, 1, width) for width in {weight.shape[1] for weight in weights}}
    numbers = sum(weight.numel() for weight in weights)
    buffer = torch.ones(numbers)
    times = interleaved(
        {
            "ours": lambda: [ours(vectors[weight.shape[1]], weight) for weight in weights],
            "functional.linear": lambda: [functional.linear(vectors[weight.shape[1]], weight) for weight in weights],
            "reading": lambda: buffer.sum(),
        },
        warmup=2,
    )
    return Row(
        name,
        times["ours"],
        {"functional.linear": times["functional.linear"] / times["ours"]},
        limit=times["reading"] / times["ours"],
        limit_name="reading memory",
        note=f"{4 * numbers / 1e6:.0f} MB of weights in float32",
    )


@torch.inference_mode()
def rms_norm(dim: int = 576, calls: int = 100) -> Iterator[Row]:
    """The norm of one vector, against PyTorch's and the least that an operation of PyTorch takes."""
    x, weight, y = torch.randn(1, 1, dim), torch.randn(dim), torch.empty(1, 1, dim)
    times = interleaved(
        {
            "ours": lambda: [our_norm(x, weight, 1e-5) for _ in range(calls)],
            "functional.rms_norm": lambda: [functional.rms_norm(x, (dim,), weight, 1e-5) for _ in range(calls)],
            "copying": lambda: [y.copy_(x) for _ in range(calls)],
        },
        repeats=15,
    )
    yield Row(
        f"rms_norm, one vector of {dim}",
        times["ours"] / calls,
        {"functional.rms_norm": times["functional.rms_norm"] / times["ours"]},
        limit=min(1.0, times["copying"] / times["ours"]),
        limit_name="one operation of PyTorch, a copy",
    )


CACHES = ((9, 3, 256), (9, 3, 32768), (8, 8, 8192), (32, 8, 8192))
"""What one query attends to: heads of queries, heads of keys, and keys."""


@torch.inference_mode()
def attention(caches: Sequence[tuple[int, int, int]] = CACHES, width: int = 64, numbers: int = 2**24) -> Iterator[Row]:
    """One query in each row against caches of several layers, together too large to stay in the processor's own.

    numbers: how many the keys of all layers are together, at least.
    """
    bandwidth = read_bandwidth()
    for heads, kv_heads, keys in caches:
        layers = -(-numbers // (keys * kv_heads * width))
        name = f"attention of one query to {keys} keys, {heads} heads on {kv_heads} of {width}, {layers} layers"
        kept = [torch.randn(2, 1, keys, kv_heads, width) for _ in range(layers)]
        yield read(name, torch.randn(1, 1, heads, width), kept, bandwidth)


def read(name: str, q: torch.Tensor, kept: Sequence[torch.Tensor], bandwidth: float) -> Row:
    """One query and the keys and values of each layer, against PyTorch's kernel and the reading of as many bytes."""
    framework = "scaled_dot_product_attention"
    pairs = [(layer[0], layer[1]) for layer in kept]
    times = interleaved(
        {
            "ours": lambda: [step_attention(q, k, v) for k, v in pairs],
            framework: lambda: [dense(q, k, v) for k, v in pairs],
        },
        warmup=2,
    )
    reading = sum(layer.nbytes for layer in kept) / bandwidth
    return Row(
        name,
        times["ours"] / len(kept),
        {framework: times[framework] / times["ours"]},
        limit=reading / times["ours"],
        limit_name="reading memory",
    )
