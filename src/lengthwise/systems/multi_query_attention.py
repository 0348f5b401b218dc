"""Multi-query attention: one key head and one value head for all query heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from lengthwise.caches import FullCache
from lengthwise.measure import interleaved
from lengthwise.models import LanguageModel
from lengthwise.ops.attention import attention
from lengthwise.systems.experiments import OnStep, nll, train_bytes, variants
from lengthwise.systems.system import Figure, Run, System, at_least, at_most, reported

SYSTEM = System(
    key="multi-query-attention",
    title="Fast Transformer Decoding: One Write-Head is All You Need",
    arxiv="1911.02150",
    parts=["mixers.attention", "caches.full", "ops.attention"],
    claim="one key and value head for all query heads divides the cache by their number and makes decoding faster, at "
    "little loss of quality, where fewer heads in all lose more",
    expression="3*(attention(heads=6, kv_heads=1) + mlp(hidden=464))",
)

ARMS = {
    "multi-head": "3*(attention(heads=6) + mlp(hidden=384))",
    "multi-query": SYSTEM.expression,
    "one head": "3*(attention(heads=1, head_dim=16) + mlp(hidden=544))",
}
"""Models of width 96. What an attention loses in parameters, its layer's perceptron gets in hidden units: 5 · (16 + 16)
· 96 weights are 80 units, 5 · 4 · 16 · 96 are 160."""

STEPS, LENGTH = 400, 128


@SYSTEM.experiment
def reproduce(run: Run) -> Iterator[Figure]:
    """The time of an attention step over a long cache, then the loss of three byte models of equal size."""
    run.progress("decoding", 0.0)
    many, one = (decoding(kv_heads) for kv_heads in (16, 1))
    yield at_least("bytes of the cache, multi-head / multi-query", many[1].nbytes / one[1].nbytes, 16, "16")
    times = interleaved({"many": many[0], "one": one[0]}, repeats=20, warmup=3)
    yield at_least("time of an attention step, multi-head / multi-query", times["many"] / times["one"], 2.5, "12")

    sizes = {name: parameters(layers) for name, layers in ARMS.items()}
    unequal = max(abs(size / sizes["multi-head"] - 1) for size in sizes.values())
    yield at_most("largest difference in parameters", unequal, 0.005)
    seeds = run.seeds[:2]
    jobs = {name: training(layers) for name, layers in ARMS.items()}
    losses = variants(run, jobs, seeds, STEPS)
    name = f"validation loss, mean of {len(seeds)} seeds"
    ratio, against = losses["multi-query"] / losses["multi-head"], losses["multi-query"] / losses["one head"]
    yield at_most(f"{name}: multi-query / multi-head", ratio, 1.03, "1.439 / 1.424 = 1.01")
    yield at_most(f"{name}: multi-query / one head", against, 1.0, "1.439 / 1.51 = 0.95")
    for arm, value in losses.items():
        yield reported(f"{name}: {arm}, nats per byte", value)


def decoding(kv_heads: int) -> tuple[Callable[[], object], FullCache]:
    """One step of attention over a cache: 16 rows, 16 heads of 64, 2048 tokens. The step, and the cache."""
    torch.manual_seed(0)
    q, k, v = torch.randn(16, 1, 16, 64), *torch.randn(2, 16, 2047, kv_heads, 64)
    with torch.no_grad():
        _, cache = FullCache.empty(k, v).extend(k, v)
        context, after = cache.extend(k[:, :1], v[:, :1])

    def step() -> object:
        with torch.no_grad():
            return attention(q, context.keys, context.values)

    return step, after


def parameters(layers: str) -> int:
    """The number of parameters of a model of width 96."""
    return sum(p.numel() for p in LanguageModel(vocab_size=256, dim=96, layers=layers).parameters())


def training(layers: str) -> Callable[[int, OnStep], float]:
    """A job that trains a byte model of width 96 and gives nats per byte of held-out text."""

    def loss(seed: int, on_step: OnStep) -> float:
        model = train_bytes(
            layers, "rope", seed=seed, dim=96, length=LENGTH, batch=16, steps=STEPS, warmup=40, on_step=on_step
        )
        return nll(model, LENGTH, last=LENGTH, windows=256)

    return loss
