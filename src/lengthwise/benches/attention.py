"""What softmax attention costs: dense, in a window, in tiles, and decoding over a cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lengthwise.benches.row import Row
from lengthwise.caches import FullCache
from lengthwise.measure import interleaved, matmul_rate, read_bandwidth
from lengthwise.ops.attention import attention as attend
from lengthwise.ops.attention import attention_reference
from lengthwise.ops.flash_attention import flash_attention as tiles
from lengthwise.ops.patterns import causal, window

HEADS, DIM = 8, 64
FRAMEWORK = "scaled_dot_product_attention"
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def attention() -> Iterator[Row]:
    """Dense causal attention and attention in a window, each forward and backward, and one decoded token."""
    rate, bandwidth = matmul_rate(), read_bandwidth()
    yield dense(4096, rate)
    yield windowed(8192, 256, rate)
    yield from decoding(2048, bandwidth)


def flash_attention() -> Iterator[Row]:
    """The recomputing tiles, against the matrix written out and against the framework's kernel."""
    length, rate = 2048, matmul_rate()
    q, k, v, grad = (torch.randn(1, length, HEADS, DIM) for _ in range(4))
    forms: dict[str, Attend] = {
        "tiles": lambda q, k, v: tiles(q, k, v)[0],
        "attention_reference": attention_reference,
        FRAMEWORK: framework,
    }
    times = interleaved({name: trained(form, q, k, v, grad) for name, form in forms.items()}, repeats=5)
    flops = products(length * (length + 1) // 2)
    yield Row(
        f"flash_attention forward and backward, causal, L {length}, {HEADS} heads of {DIM}",
        times["tiles"],
        {peer: times[peer] / times["tiles"] for peer in ("attention_reference", FRAMEWORK)},
        flops / times["tiles"] / rate,
        "matrix products, float32",
        "for patterns and biases on long rows that no fused kernel takes",
    )


def dense(length: int, rate: float) -> Row:
    """Causal attention to everything before."""
    q, k, v, grad = (torch.randn(1, length, HEADS, DIM) for _ in range(4))
    forms: dict[str, Attend] = {"attention": attend, FRAMEWORK: framework}
    times = interleaved({name: trained(form, q, k, v, grad) for name, form in forms.items()}, repeats=9)
    return Row(
        f"attention forward and backward, causal, L {length}, {HEADS} heads of {DIM}",
        times["attention"],
        {FRAMEWORK: times[FRAMEWORK] / times["attention"]},
        products(length * (length + 1) // 2) / times["attention"] / rate,
        "matrix products, float32",
    )


def windowed(length: int, size: int, rate: float) -> Row:
    """Attention in a window, against dense causal attention."""
    q, k, v, grad = (torch.randn(1, length, HEADS, DIM) for _ in range(4))
    pattern = causal() & window(size)
    forms: dict[str, Attend] = {"window": lambda q, k, v: attend(q, k, v, pattern=pattern), "dense": framework}
    times = interleaved({name: trained(form, q, k, v, grad) for name, form in forms.items()}, repeats=5)
    return Row(
        f"attention forward and backward, window {size}, L {length}, {HEADS} heads of {DIM}",
        times["window"],
        {f"dense causal {FRAMEWORK}": times["dense"] / times["window"]},
        products(size * (size + 1) // 2 + (length - size) * size) / times["window"] / rate,
        "matrix products, float32",
        "counted on the keys in the window alone",
    )


def decoding(length: int, bandwidth: float) -> Iterator[Row]:
    """One token appended to a cache and attending to it, with as many key-value heads as query heads and with one."""
    batch, heads = 16, 16
    steps: dict[str, Callable[[], Tensor]] = {}
    read: dict[str, int] = {}
    names = {heads: "a key head for each", 1: "one key head"}
    for kv_heads, name in names.items():
        q, k, v = torch.randn(batch, 1, heads, DIM), *torch.randn(2, batch, length - 1, kv_heads, DIM)
        _, cache = FullCache.empty(k, v).extend(k, v)
        steps[name] = decoder(q, cache)
        read[name] = cache.nbytes
    with torch.no_grad():
        times = interleaved(steps, repeats=20, warmup=3)
    for kv_heads, name in names.items():
        yield Row(
            f"attention, one token appended to {length}, {batch} rows, {heads} heads of {DIM}, {kv_heads} for keys",
            times[name],
            {names[heads]: times[names[heads]] / times[name]} if kv_heads == 1 else {},
            read[name] / times[name] / bandwidth,
            "reading memory",
        )


def decoder(q: Tensor, cache: FullCache) -> Callable[[], Tensor]:
    """A function that decodes a further token each time it is called."""
    newest = cache
    token = q[:, :, : cache.keys.shape[2]]

    def step() -> Tensor:
        nonlocal newest
        context, newest = newest.extend(token, token)
        return attend(q, context.keys, context.values)

    return step


def framework(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Dense causal attention by PyTorch's kernel."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def trained(form: Attend, q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> Callable[[], object]:
    """A function that runs a forward and a backward pass."""
    leaves = [x.requires_grad_() for x in (q, k, v)]
    return lambda: torch.autograd.grad(form(*leaves), leaves, grad)


def products(pairs: float) -> float:
    """Floating-point operations of the matrix products over pairs of a query and a key that it sees: two forward, and
    five backward, where the logits are computed again."""
    return 7 * 2 * pairs * DIM * HEADS
