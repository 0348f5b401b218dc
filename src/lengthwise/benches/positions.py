"""What position encodings cost: a training step and a decoding step of dense attention, with each and without."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from lengthwise.benches.attention import FRAMEWORK, framework, products
from lengthwise.benches.row import Row
from lengthwise.contract import SequenceModule
from lengthwise.measure import interleaved, matmul_rate, peak_bytes, read_bandwidth
from lengthwise.models.build import build
from lengthwise.ops.attention import attention as attend
from lengthwise.ops.attention import attention_reference
from lengthwise.ops.relative_content import RelativeContent
from lengthwise.positions import POSITIONS

DIM, HEADS, LENGTH, CONTEXT = 512, 8, 2048, 8192

EXPRESSIONS = {"randomised": f"randomised(rope, length={8 * CONTEXT})"}
"""What is measured of an encoding that doesn't stand alone."""

PLAIN = "none"


def positions() -> Iterator[Row]:
    """A dense attention layer with each encoding that acts inside it, over the same layer without one."""
    layers = {name: layer(name) for name in encodings()}
    rate = matmul_rate()
    x = torch.randn(1, LENGTH, DIM)
    times = interleaved({name: trained(module, x) for name, module in layers.items()}, repeats=7)
    flops = products(LENGTH * (LENGTH + 1) // 2) + 3 * 2 * 4 * LENGTH * DIM**2
    for name, seconds in times.items():
        title = f"attention layer with {name}, training step, L {LENGTH}, dim {DIM}, {HEADS} heads"
        yield Row(title, seconds, over(times, name), flops / seconds / rate, "matrix products, float32")
    bandwidth = read_bandwidth()
    with torch.no_grad():
        times = interleaved({name: decoder(module) for name, module in layers.items()}, repeats=40, warmup=3)
    size = 4 * (2 * CONTEXT * DIM + 4 * DIM**2)
    for name, seconds in times.items():
        title = f"attention layer with {name}, one token appended to {CONTEXT}, dim {DIM}, {HEADS} heads"
        yield Row(title, seconds, over(times, name), size / seconds / bandwidth, "reading memory")


def encodings() -> list[str]:
    """Those that act inside a layer; the first has no position."""
    acting = [name for name, kind in POSITIONS.items() if name != PLAIN and tuple(kind.hooks) != ("embed",)]
    return [PLAIN, *acting]


def layer(name: str) -> SequenceModule:
    """The attention layer with an encoding."""
    if name == PLAIN:
        return build(f"attention(heads={HEADS})", dim=DIM)
    return build(f"attention(heads={HEADS}, position={EXPRESSIONS.get(name, name)})", dim=DIM)


def over(times: dict[str, float], name: str) -> dict[str, float]:
    """The ratio to no position."""
    return {} if name == PLAIN else {"no position": times[PLAIN] / times[name]}


def trained(module: SequenceModule, x: Tensor) -> Callable[[], object]:
    """A function that runs a forward and a backward pass, beginning as a model's would."""
    x = x.clone().requires_grad_()
    leaves = [x, *(p for p in module.parameters() if p.requires_grad)]

    def train() -> object:
        begin(module)
        return torch.autograd.grad(module(x)[0].sum(), leaves, allow_unused=True)

    return train


def decoder(module: SequenceModule) -> Callable[[], object]:
    """A function that decodes a further token each time it is called."""
    module.eval()
    begin(module)
    with torch.no_grad():
        _, state = module(torch.randn(1, CONTEXT, DIM))
    token = torch.randn(1, 1, DIM)

    def decode() -> object:
        nonlocal state
        y, state = module(token, state)
        return y

    return decode


def begin(module: SequenceModule) -> None:
    """What a model does before its layers."""
    position = getattr(module, "position", None)
    if position is not None:
        position.begin_pass(module.training)


def relative_attention(length: int = 4096) -> Iterator[Row]:
    """Relative embeddings read by content: time over attention without them, and peak memory below the direct form's,
    which writes out the logits of all heads. That of half the length says how it grows."""
    channels, rate = 64, matmul_rate()
    given = [x.requires_grad_() for x in inputs(length, HEADS, channels)]
    times = interleaved({"relative": step(relative, given), "plain": step(plain, given)}, repeats=3)
    peak, below = (peak_bytes(step(form, given)) for form in (relative, direct))
    half = peak_bytes(step(relative, [x.requires_grad_() for x in inputs(length // 2, HEADS, channels)]))
    yield Row(
        f"relative attention forward and backward, causal, L {length}, {HEADS} heads of {channels}",
        times["relative"],
        {FRAMEWORK: times["plain"] / times["relative"]},
        products(length * (length + 1) // 2) * 10 / 7 / times["relative"] / rate,
        "matrix products, float32",
        f"peak memory {peak / 2**20:.0f} MiB, {below / peak:.1f} times below the direct form's, and {peak / half:.2f} "
        f"times that at L {length // 2}",
    )


def inputs(length: int, heads: int, channels: int) -> list[Tensor]:
    """q, k, v and a table of embeddings for every distance."""
    return [*(torch.randn(1, length, heads, channels) for _ in range(3)), torch.randn(heads, length, channels) / 8]


def step(form: Callable[..., Tensor], given: list[Tensor]) -> Callable[[], object]:
    """A function that runs a form forward and backward."""
    return lambda: torch.autograd.grad(form(*given).sum(), given, allow_unused=True)


def relative(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    """The form that is used."""
    length, channels = q.shape[1], q.shape[3]
    bias = RelativeContent(q.transpose(1, 2), table, length, length - 1, channels**-0.5)
    return attend(q, k, v, bias=bias)


def direct(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    """All logits written out: R = q Eᵀ, in which each row is then moved to where its distances are. A column before it,
    and R read in rows of one number more, do that, as Huang et al. 2018 have it."""
    length, channels = q.shape[1], q.shape[3]
    products = torch.einsum("bihd,hjd->bhij", q, table) * channels**-0.5
    moved = pad(products, (1, 0)).view(*products.shape[:2], length + 1, length)[:, :, 1:]
    return attention_reference(q, k, v, bias=moved)


def plain(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:  # noqa: ARG001
    """Attention without embeddings, by the framework's kernel."""
    return framework(q, k, v)
