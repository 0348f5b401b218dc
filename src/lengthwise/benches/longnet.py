"""Benchmarks of dilated attention: what a token costs in short and in long sequences, and what memory it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from lengthwise.benches.megalodon import step
from lengthwise.benches.row import Row
from lengthwise.benches.scan import Form, inferred, trained
from lengthwise.measure import interleaved, matmul_rate, peak_bytes
from lengthwise.mixers.dilated_attention import DilatedAttention
from lengthwise.ops.attention import attention
from lengthwise.ops.dilated_attention import branches_of, dilated_attention

HEADS, HEAD_DIM = 16, 16
SEGMENTS, DILATIONS = (128, 512, 2048), (1, 4, 16)
LENGTHS = (4096, 16384, 65536)

PAPER = {"segments": (2048, 4096, 8192, 16384, 32768), "dilations": (1, 2, 4, 6, 12)}
PAPER_HEADS, PAPER_DIM, PAPER_LENGTHS = 12, 64, (32768, 65536)
"""The last at which its longest segment is full, and the next."""

PRODUCTS = "matrix products, float32"
Work = Callable[[], object]


def longnet() -> Iterator[Row]:
    """The operator and the layer, by length, in a geometry in which every offset is used and in the paper's."""
    torch.manual_seed(0)
    rate = matmul_rate()
    name = f"w {list(SEGMENTS)}, r {list(DILATIONS)}, {HEADS} heads of {HEAD_DIM}"
    yield from by_length(f"dilated_attention forward, {name}", operator, rate, 1)
    yield from by_length(f"dilated_attention forward and backward, {name}", operator_trained, rate, 3)
    yield from by_length(f"layer forward, {name}", layer, None)
    yield from by_length(f"layer forward and backward, {name}", layer_trained, None)
    yield dense(LENGTHS[1])
    yield memory()
    yield from paper()


def operator(length: int) -> Work:
    """A forward pass of the operator."""
    return inferred(partial(dilated_attention, branches=branches_of(SEGMENTS, DILATIONS)), inputs(length))


def operator_trained(length: int) -> Work:
    """A forward and a backward pass of the operator."""
    return trained(partial(dilated_attention, branches=branches_of(SEGMENTS, DILATIONS)), inputs(length))


def layer(length: int) -> Work:
    """A forward pass of the whole layer."""
    mixer, dim = built(), HEADS * HEAD_DIM
    return inferred(lambda x: mixer(x)[0], [torch.randn(1, length, dim)])


def layer_trained(length: int) -> Work:
    """A forward and a backward pass of the whole layer."""
    return step(built(), torch.randn(1, length, HEADS * HEAD_DIM))


def built() -> DilatedAttention:
    """The layer of the first geometry."""
    return DilatedAttention(HEADS * HEAD_DIM, heads=HEADS, segments=SEGMENTS, dilations=DILATIONS)


def inputs(length: int, heads: int | None = None, head_dim: int | None = None) -> list[Tensor]:
    """q, k and v of one row."""
    return [torch.randn(1, length, heads or HEADS, head_dim or HEAD_DIM) for _ in range(3)]


def by_length(name: str, make: Callable[[int], Work], rate: float | None, passes: int = 1) -> Iterator[Row]:
    """A row for each length; the ratio is the cost of a token in the shortest over that of a token in this one."""
    times = interleaved({str(n): make(n) for n in LENGTHS}, repeats=5)
    shortest = times[str(LENGTHS[0])] / LENGTHS[0]
    for n in LENGTHS:
        seconds = times[str(n)]
        done = passes * arithmetic(SEGMENTS, DILATIONS, n, HEADS, HEAD_DIM)
        share = None if rate is None else done / seconds / rate
        ratios = {} if n == LENGTHS[0] else {f"a token at L {LENGTHS[0]}": shortest / (seconds / n)}
        yield Row(
            f"{name}, L {n}", seconds, ratios, share, PRODUCTS if rate else "", f"{1e9 * seconds / n:.0f} ns a token"
        )


def arithmetic(segments: tuple[int, ...], dilations: tuple[int, ...], length: int, heads: int, head_dim: int) -> float:
    """Floating-point operations of the products of queries, keys and values forward; of a backward pass, twice as many
    count, without the logits that it computes again."""
    pairs = 0.0
    for branch in branches_of(segments, dilations):
        for offset, group in enumerate(branch.heads(heads)):
            whole, rest = divmod(length, branch.segment)
            for size, count in ((branch.segment, whole), (rest, 1)):
                rows = len(range(offset, size, branch.dilation))
                pairs += count * (group.stop - group.start) * rows * (rows + 1) / 2
    return 4 * pairs * head_dim


def dense(length: int) -> Row:
    """Against dense causal attention."""
    given = inputs(length)
    forms: dict[str, Form] = {
        "dilated": partial(dilated_attention, branches=branches_of(SEGMENTS, DILATIONS)),
        "dense": attention,
    }
    times = interleaved({name: inferred(form, given) for name, form in forms.items()}, repeats=3)
    name = f"dilated_attention forward against dense, L {length}, {HEADS} heads of {HEAD_DIM}"
    return Row(name, times["dilated"], {"scaled_dot_product_attention": times["dense"] / times["dilated"]})


def memory() -> Row:
    """Bytes of tensors that a forward and a backward pass have alive at once, for each token."""
    peaks = {}
    for n in (LENGTHS[0], LENGTHS[-1]):
        work = operator_trained(n)
        peaks[n] = peak_bytes(work) / n
    seconds = interleaved({"both": operator_trained(LENGTHS[0])}, repeats=1)["both"]
    note = ", ".join(f"{peak:.0f} bytes a token at L {n}" for n, peak in peaks.items())
    return Row(
        f"memory of dilated_attention forward and backward, L {LENGTHS[0]} and {LENGTHS[-1]}", seconds, note=note
    )


def paper() -> Iterator[Row]:
    """The operator forward in the paper's geometry."""
    form = partial(dilated_attention, branches=branches_of(**PAPER))
    rate, before = matmul_rate(), None
    for n in PAPER_LENGTHS:
        work = inferred(form, inputs(n, PAPER_HEADS, PAPER_DIM))
        seconds = interleaved({"forward": work}, repeats=1)["forward"]
        done = arithmetic(PAPER["segments"], PAPER["dilations"], n, PAPER_HEADS, PAPER_DIM)
        ratios: dict[str, float] = (
            {} if before is None else {f"a token at L {PAPER_LENGTHS[0]}": before / (seconds / n)}
        )
        before = seconds / n
        name = f"dilated_attention forward, the paper's w and r, {PAPER_HEADS} heads of {PAPER_DIM}, L {n}"
        yield Row(name, seconds, ratios, done / seconds / rate, PRODUCTS, f"{1e9 * seconds / n:.0f} ns a token")
