"""Benchmarks of Megalodon: the block against the rate of matrix products, and its average and its norm alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from lengthwise.benches.row import Row
from lengthwise.benches.scan import Form, inferred, trained
from lengthwise.contract import SequenceModule
from lengthwise.measure import interleaved, matmul_rate
from lengthwise.mixers.megalodon import Megalodon
from lengthwise.mixers.moving_average import ComplexEMA
from lengthwise.ops.long_convolution import long_convolution
from lengthwise.ops.timestep_norm import timestep_norm

LENGTH, DIM = 4096, 512
CHUNKS = (256, 2048)
PRODUCTS = "matrix products, float32"


def megalodon() -> Iterator[Row]:
    """The block in chunks of two sizes; the moving average and the norm against other ways to the same."""
    torch.manual_seed(0)
    for chunk in CHUNKS:
        yield from block(chunk)
    yield average()
    yield norm()


def block(chunk: int) -> Iterator[Row]:
    """Forward, and forward with backward, of the whole block but its residual."""
    mixer, x = Megalodon(DIM, chunk=chunk), torch.randn(1, LENGTH, DIM)
    forward = arithmetic(mixer, LENGTH)
    work = {"forward": inferred(mixer, [x]), "forward and backward": step(mixer, x)}
    rate, times = matmul_rate(), interleaved(work, repeats=5)
    for (kind, seconds), products in zip(times.items(), (forward, 3 * forward), strict=True):
        name = f"megalodon {kind}, L {LENGTH}, dim {DIM}, chunks of {chunk}"
        yield Row(name, seconds, limit=products / seconds / rate, limit_name=PRODUCTS)


def arithmetic(mixer: Megalodon, length: int) -> float:
    """Floating-point operations of the matrix products forward: the projections, and queries with the keys that they
    see. A backward pass has two products for each; the average, the norms and what is computed twice aren't counted."""
    projections = sum(2 * length * layer.weight.numel() for layer in (mixer.v_proj, mixer.m_proj, mixer.o_proj))
    whole, rest = divmod(length, mixer.chunk)
    seen = whole * mixer.chunk * (mixer.chunk + 1) // 2 + rest * (rest + 1) // 2
    return projections + 2 * seen * (mixer.z_dim + mixer.value_dim)


def average() -> Row:
    """The complex moving average by its recurrence and by Fourier transforms, whose taps are given."""
    mixer, x = ComplexEMA(DIM), torch.randn(1, LENGTH, DIM)
    transforms = trained(long_convolution, [x, torch.randn(LENGTH, DIM)])
    times = interleaved({"recurrence": step(mixer, x), "transforms": transforms}, repeats=9)
    return Row(
        f"complex moving average forward and backward, L {LENGTH}, {DIM} channels, {mixer.alpha.shape[1]} states",
        times["recurrence"],
        {"a convolution by Fourier transforms": times["transforms"] / times["recurrence"]},
        note="the convolution's taps are given, not made from the averages' rates",
    )


def norm(groups: int = DIM // 32) -> Row:
    """The norm over time against one of each token alone, and against merging stretches in plain PyTorch."""
    given = [torch.randn(1, LENGTH, DIM), torch.ones(DIM), torch.zeros(DIM)]

    def over_time(x: Tensor, gain: Tensor, bias: Tensor, backend: str = "auto") -> Tensor:
        return timestep_norm(x, gain, bias, groups=groups, backend=backend)[0]

    forms: dict[str, Form] = {
        "fused": over_time,
        "by doubling": partial(over_time, backend="torch"),
        "layer_norm": lambda x, gain, bias: layer_norm(x, (DIM,), gain, bias),
    }
    times = interleaved({name: trained(form, given) for name, form in forms.items()}, repeats=9)
    own = times.pop("fused")
    ratios = {peer: seconds / own for peer, seconds in times.items()}
    return Row(f"timestep_norm forward and backward, L {LENGTH}, {groups} groups of {DIM // groups}", own, ratios)


def step(module: SequenceModule, x: Tensor) -> Callable[[], object]:
    """A function that runs a forward and a backward pass of a module."""
    leaves = [x.requires_grad_(), *module.parameters()]
    return lambda: torch.autograd.grad(module(x)[0].sum(), leaves)
