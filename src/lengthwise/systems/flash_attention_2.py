"""FlashAttention-2: exact attention in tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lengthwise.measure import interleaved, peak_bytes
from lengthwise.ops.flash_attention import Tiling, accumulate, flash_attention
from lengthwise.ops.pattern import Pattern
from lengthwise.ops.patterns import causal, full, window
from lengthwise.ops.tiles import Frame, Tiles
from lengthwise.ops.visibility import aligned
from lengthwise.systems.system import Figure, Run, System, at_least, at_most, reported

SYSTEM = System(
    key="flash-attention-2",
    title="FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning",
    arxiv="2307.08691",
    parts=["ops.flash_attention", "ops.patterns"],
    claim="exact attention tile by tile: memory linear in the length, fewer operations that are no matrix products, "
    "and half the work where attention is causal",
)

LENGTH, HEADS, DIM = 4096, 2, 64
TILE = (128, 128)


@dataclass(frozen=True)
class Case:
    """Sizes and pattern of one comparison with the closed form. factor: multiplies the logits."""

    name: str
    queries: int = LENGTH
    keys: int = LENGTH
    kv_heads: int = HEADS
    pattern: Pattern = field(default_factory=causal)
    documents: int = 1
    factor: float = 1.0


CASES = (
    Case("square"),
    Case("more keys than queries", 1000, 1300),
    Case("one key-value head", 1000, 1300, kv_heads=1),
    Case("two documents", 1000, 1300, documents=2),
    Case("window (64, 0)", 1000, 1300, pattern=window(64, 0)),
    Case("logits times 50", 1000, 1300, factor=50.0),
)


@SYSTEM.experiment
def reproduce(run: Run) -> Iterator[Figure]:
    """Float32, one row, 2 heads of 64, length 4096, tiles of 128 by 128, normal inputs."""
    steps = len(CASES) + 3
    errors = {}
    for number, case in enumerate(CASES):
        run.progress(f"error: {case.name}", number / steps)
        errors[case.name] = [errors_of(case, seed) for seed in run.seeds]
    stress = errors.pop("logits times 50")
    yield at_most("largest error of O and LSE", max(e[0] for es in errors.values() for e in es), 2e-5, "exact")
    yield at_most("largest error of dQ, dK, dV", max(e[1] for es in errors.values() for e in es), 2e-4, "exact")
    finite = sum(e[2] for e in stress) / len(stress)
    yield at_least("share of finite values, logits times 50", finite, 1.0, note="no overflow")

    run.progress("memory", (steps - 3) / steps)
    ours, plain = extra_bytes(lambda q, k, v: flash_attention(q, k, v, tile=TILE)[0]), extra_bytes(plain_attention)
    yield at_most("peak memory of tiles / plain attention, forward and backward", ours / plain, 0.10, "O(L), not O(L²)")

    run.progress("operations", (steps - 2) / steps)
    yield at_most("tiles visited, causal / full", visited(causal()) / visited(full()), 0.53, "about half")
    two, one = (elementwise_operations(part) for part in (accumulate, accumulate_version_1))
    yield at_most("elementwise operations on O, version 2 / version 1", two / one, 0.5, "fewer")

    run.progress("time", (steps - 1) / steps)
    q, k, v = inputs(Case("square"), 0)
    with torch.no_grad():
        times = interleaved(
            {
                "causal": lambda: flash_attention(q, k, v, tile=TILE),
                "full": lambda: flash_attention(q, k, v, pattern=full(), tile=TILE),
                "plain": lambda: plain_attention(q, k, v),
            },
            repeats=5,
        )
    yield at_most("time of the forward pass, causal / full", times["causal"] / times["full"], 0.70, "about half")
    yield reported("time of the forward pass, tiles / plain attention", times["causal"] / times["plain"], "0.1 to 0.33")


def inputs(case: Case, seed: int) -> list[Tensor]:
    """Normal q, k and v, the logits multiplied by the case's factor."""
    generator = torch.Generator().manual_seed(seed)
    sizes = ((case.queries, HEADS), (case.keys, case.kv_heads), (case.keys, case.kv_heads))
    q, k, v = (torch.randn(1, length, heads, DIM, generator=generator) for length, heads in sizes)
    return [x.requires_grad_() for x in (q * case.factor, k, v)]


def errors_of(case: Case, seed: int) -> tuple[float, float, float]:
    """The largest error of O and LSE, that of the gradients, and the share of finite values, against float64."""
    q, k, v = inputs(case, seed)
    numbers = torch.arange(case.keys)[None] * case.documents // case.keys
    packed: dict[str, Any] = {}
    if case.documents > 1:
        packed = {"query_documents": numbers[:, case.keys - case.queries :], "key_documents": numbers}
    weights = torch.randn(1, case.queries, HEADS, DIM, generator=torch.Generator().manual_seed(seed + 1))
    o, lse = flash_attention(q, k, v, pattern=case.pattern, tile=TILE, **packed)
    got = (o, lse, *torch.autograd.grad((o * weights).sum(), (q, k, v)))
    seen = aligned(case.pattern, case.queries, case.keys, **packed).mask()
    q, k, v = (x.detach().double().requires_grad_() for x in (q, k, v))
    o, lse = closed_form(q, k, v, seen)
    expected = (o, lse, *torch.autograd.grad((o * weights).sum(), (q, k, v)))
    difference = [float((a.double() - b).abs().max().detach()) for a, b in zip(got, expected, strict=True)]
    finite = sum(float(x.isfinite().double().mean()) for x in got) / len(got)
    return max(difference[:2]), max(difference[2:]), finite


def closed_form(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """O and LSE with the matrix of logits written out, head by head as plain attention does it."""
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
    logits = torch.einsum("bihd,bjhd->bhij", q * DIM**-0.5, k).masked_fill(~seen[:, None], -torch.inf)
    return torch.einsum("bhij,bjhd->bihd", logits.softmax(-1), v), logits.logsumexp(-1).transpose(1, 2)


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What tiles are compared with: logits, mask and softmax, each a matrix of its own."""
    logits = torch.einsum("bihd,bjhd->bhij", q * DIM**-0.5, k)
    seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril()
    return torch.einsum("bhij,bjhd->bihd", logits.masked_fill(~seen, -torch.inf).softmax(-1), v)


def extra_bytes(attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> int:
    """Peak bytes of a forward and a backward pass beyond inputs, output and gradients."""
    q, k, v = inputs(Case("square"), 0)
    weights = torch.ones_like(q)
    peak = peak_bytes(lambda: torch.autograd.grad(attend(q, k, v), (q, k, v), weights))
    return peak - q.nbytes - sum(x.nbytes for x in (q, k, v))


def visited(pattern: Pattern) -> int:
    """Tiles that a pattern doesn't skip."""
    return sum(verdict is not False for line in aligned(pattern, LENGTH, LENGTH).tiles(*TILE) for verdict in line)


class ElementwiseOperations(TorchDispatchMode):
    """Counts elementwise operations whose result has the shape of a tile of O."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and count it."""
        result = func(*args, **(kwargs or {}))
        if torch.Tag.pointwise in func.tags and isinstance(result, Tensor) and tuple(result.shape) == self.shape:
            self.count += 1
        return result


Accumulate = Callable[[Tiling, Tensor, Tensor, Tensor, slice, list[tuple[slice, bool]]], tuple[Tensor, Tensor]]


def elementwise_operations(part: Accumulate) -> int:
    """Elementwise operations on O over all tiles of a causal forward pass."""
    q, k, v = (x.detach()[0].transpose(0, 1) for x in inputs(Case("square"), 0))
    tiling = Tiling(Frame(Tiles(aligned(causal(), LENGTH, LENGTH), *TILE)), None, 1.0, 1, 1)
    with ElementwiseOperations((HEADS, TILE[0], DIM)) as counter:
        for rows, tiles in tiling.frame.tiles.rows:
            part(tiling, q[:, rows], k, v, rows, tiles)
    return counter.count


def accumulate_version_1(
    tiling: Tiling, q: Tensor, keys: Tensor, values: Tensor, rows: slice, tiles: list[tuple[slice, bool]]
) -> tuple[Tensor, Tensor]:
    """O and LSE of one tile of queries as version 1 has it: O is normalised after every tile of keys.

    O ← (l e^{m − m'} O + e^{m̃ − m'} P̃ V) / l'          m̃, P̃: of this tile alone
    """
    o = q.new_zeros(*q.shape[:2], values.shape[2])
    total = q.new_zeros(*q.shape[:2], 1)
    highest = torch.full_like(total, -torch.inf)
    for columns, hides in tiles:
        logits = tiling.logits(q, keys, rows, columns, hides)
        own = logits.amax(-1, keepdim=True)
        p = (logits - own).exp()
        after = torch.maximum(highest, own)
        kept, added = (highest - after).exp() * total, (own - after).exp()
        total = kept + added * p.sum(-1, keepdim=True)
        o = (kept * o + added * torch.bmm(p, values[:, columns])) / total
        highest = after
    return o, highest + total.log()
