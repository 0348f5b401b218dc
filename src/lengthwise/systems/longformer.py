"""Longformer: a window for every token and a few global tokens, at a cost in proportion to the length."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lengthwise.measure import interleaved
from lengthwise.ops.attention import attention
from lengthwise.ops.patterns import full, global_tokens, window
from lengthwise.systems.cue import medians
from lengthwise.systems.system import Figure, Run, System, at_least, at_most, of_seeds, reported
from lengthwise.tasks.cue import Cue

SYSTEM = System(
    key="longformer",
    title="Longformer: The Long-Document Transformer",
    arxiv="2004.05150",
    parts=["mixers.longformer", "ops.patterns", "ops.sparse_attention", "tasks.cue"],
    claim="a few tokens that see everything and are seen by all let information cross any distance, at a cost in"
    " proportion to the length",
    expression="12*(longformer(heads=12, window=256) + mlp)",
    pattern="window(4, 4) | global_tokens(0)",
)

TASK = Cue(length=256, answered="first")
STEPS, BATCH, WINDOW = 300, 16, 8
ARMS = {
    "full attention": "2*(attention(heads=4, bias=true) + mlp)",
    "window alone": f"2*(longformer(heads=4, window={WINDOW}) + mlp)",
    "window and one global token": f"2*(longformer(heads=4, window={WINDOW}, first=1) + mlp)",
}
LONG, WIDE = 4096, 64


@SYSTEM.experiment
def reproduce(run: Run) -> Iterator[Figure]:
    """A cue anywhere among 255 tokens of noise, named at the first place, by two layers of an encoder with a window of
    8 tokens to each side; the logits that are computed; the time of a long forward pass."""
    found = medians(run, {name: (arm, run.seeds) for name, arm in ARMS.items()}, TASK, steps=STEPS, batch=BATCH)
    over = of_seeds(run.seeds)
    name = "window and one global token"
    yield at_least(f"accuracy, {name} ({over})", found[name], 0.95, note=f"guessing: {TASK.chance:g}")
    reach = "two layers reach 16 of 255 places"
    yield at_most(f"accuracy, window alone ({over})", found["window alone"], 0.3, note=reach)
    yield reported(f"accuracy, full attention ({over})", found["full attention"])
    pattern = window(WINDOW, WINDOW) | global_tokens(0)
    share = pattern.entries(TASK.length) / full().entries(TASK.length)
    yield at_most("logits over those of full attention, 256 tokens", share, 0.1, claimed="in proportion to L, not L²")
    run.progress("time against dense attention", 0.99)
    times = forward_times()
    yield at_most(
        f"forward time over dense attention, {LONG} tokens, window {WIDE} to each side",
        times["window"] / times["dense"],
        0.5,
        claimed="linear in L",
    )


@torch.no_grad()
def forward_times(length: int = LONG, repeats: int = 9) -> dict[str, float]:
    """Median seconds of the operator, in a window with one global token and dense: 4 heads of 16."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, length, 4, 16) for _ in range(3))
    pattern = window(WIDE, WIDE) | global_tokens(0)
    calls: dict[str, Callable[[], Tensor]] = {
        "window": lambda: attention(q, k, v, pattern=pattern),
        "dense": lambda: attention(q, k, v, pattern=full()),
    }
    return interleaved(calls, repeats=repeats, warmup=2)
