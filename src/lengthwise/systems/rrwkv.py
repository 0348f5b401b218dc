"""RRWKV: whether summaries of finished intervals help RWKV-4 to recall over long gaps."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lengthwise.mixers.rrwkv import RRWKV
from lengthwise.models.language_model import LanguageModel
from lengthwise.systems import rwkv_model
from lengthwise.systems.experiments import OnStep, parameters, progress
from lengthwise.systems.system import Figure, Run, System, at_least, at_most, reported
from lengthwise.tasks.recall import GapRecall
from lengthwise.tasks.task import Example
from lengthwise.training.fit import cross_entropy, logit_penalty

SYSTEM = System(
    key="rrwkv",
    title="RRWKV: Capturing Long-range Dependencies in RWKV",
    arxiv="2306.05176",
    parts=["mixers.rrwkv", "channels.rrwkv_channels", "ops.intervals", "ops.wkv", "tasks.gap_recall"],
    claim="summaries of the past at regular intervals, which later tokens read, shorten the path to what lies far back,"
    " at linear cost",
    expression="layernorm + 12*(rrwkv + rrwkv_channels)",
)

TASK = GapRecall(length=GapRecall.length_of(256), values=16, noise=14)
SHORTEST = 32
GAPS = (64, 256, 512)
"""The last is longer than any in training."""

BATCH, STEPS = 16, 1200
ARMS = {
    "RRWKV": ("layernorm + 2*(rrwkv(interval=16) + rrwkv_channels(interval=16))", 64),
    "RWKV-4": (rwkv_model.layers(2), 64),
    "RWKV-4, widened": (rwkv_model.layers(2), 69),
}
"""Layers and width of what is compared; the last has the number of parameters of the first."""


@SYSTEM.experiment
def reproduce(run: Run) -> Iterator[Figure]:
    """A mark, one of 16 values, noise and another mark, at which the value is asked; two layers of width 64.

    RRWKV with intervals of 16 tokens against RWKV-4 of the same width and of as many parameters, each trained for 1200
    batches of 16 sequences with gaps of 32 to 256 tokens, one gap in a batch, by Adam from 2e-3 to 1e-4. The loss is
    that of the answer, and a tenth of that of the other tokens that aren't noise. Accuracies are those of 512 fresh
    sequences, the median over the seeds. Batches were to hold 32 sequences, and hold half of that for the
    time it takes.
    """
    tell = progress(run, len(run.seeds) * len(ARMS) * STEPS)
    found: dict[str, list[list[float]]] = {name: [] for name in ARMS}
    trained: dict[str, LanguageModel] = {}
    for seed in run.seeds:
        for name in ARMS:
            trained[name] = train(name, seed, tell(f"{name}, seed {seed}"))
            found[name].append([TASK.score(trained[name], examples=512, length=TASK.length_of(gap)) for gap in GAPS])
    accuracy = {name: [statistics.median(gap) for gap in zip(*seeds, strict=True)] for name, seeds in found.items()}
    yield gain(accuracy)
    for place, gap in enumerate(GAPS):
        note = ", ".join(f"{name}: {accuracy[name][place]:.3f}" for name in list(ARMS)[1:])
        yield reported(f"accuracy at a gap of {gap}", accuracy["RRWKV"][place], note=note)
    counts = [parameters(model) for model in trained.values()]
    yield reported("parameters of RRWKV over those of RWKV-4 of its width", counts[0] / counts[1])
    yield reported("the same of the widened RWKV-4", counts[0] / counts[2], note=f"{counts[0]} and {counts[2]}")
    apart = apart_without_mediums(trained["RWKV-4"])
    yield at_most("largest difference of its logits from RWKV-4's, mediums absent, trained weights", apart, 1e-5)


def gain(accuracy: dict[str, list[float]]) -> Figure:
    """How far RRWKV is above the better RWKV-4 on the mean over all gaps, or at the longest where both solve the
    others."""
    ours, *others = accuracy.values()
    best = max(others, key=statistics.fmean)
    name, above = "accuracy above that of the better RWKV-4, mean of all gaps", statistics.fmean(ours)
    above -= statistics.fmean(best)
    if min(ours[:-1] + best[:-1]) > 0.95:
        above, name = ours[-1] - best[-1], f"accuracy above that of the better RWKV-4 at a gap of {GAPS[-1]}"
    note = "" if above >= 0.05 else "not reproduced"
    return at_least(name, above, 0.05, claimed="better capture of long-range dependencies", note=note)


def train(name: str, seed: int, on_step: OnStep | None = None, steps: int | None = None) -> LanguageModel:
    """One of `ARMS`."""
    torch.manual_seed(seed)
    model = build(name)
    lengths = range(TASK.length_of(SHORTEST), TASK.length + 1)
    batches = TASK.batches_of_lengths(BATCH, lengths, seed)
    rwkv_model.train(model, batches, steps=steps or STEPS, loss=objective, on_step=on_step)
    return model.eval()


def build(name: str) -> LanguageModel:
    """One of `ARMS` before its training."""
    layers, dim = ARMS[name]
    return rwkv_model.build(layers, dim, vocab_size=TASK.vocab_size)


def objective(model: nn.Module, example: Example) -> Float[Tensor, ""]:
    """The loss of the answer, a tenth of that of the shown tokens that aren't noise, and RWKV's bound on the logits."""
    logits, _ = model(example.tokens)
    shown = example.tokens[:, 1:]
    told = ~TASK.is_noise(shown)
    others = cross_entropy(logits[:, :-1][told][None], shown[told][None])
    return TASK.loss(logits, example) + 0.1 * others + logit_penalty(logits)


@torch.no_grad()
def apart_without_mediums(plain: LanguageModel) -> float:
    """The largest difference between the logits of an RWKV-4 and of an RRWKV with its weights and mediums that weigh
    nothing, at the length of training."""
    model = build("RRWKV").eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    for module in model.modules():
        if isinstance(module, RRWKV):
            module.medium_bonus.fill_(-1e9)
    tokens = TASK.batch(8, seed=1_000_003).tokens
    return float((model(tokens)[0] - plain(tokens)[0]).abs().max())
