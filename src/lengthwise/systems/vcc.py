"""Vcc: a trained encoder compressed around a question keeps its answers, where it chooses what to keep by attention.

As published, an encoder of "4*(chunked_attention(chunk=512) + mlp) + vcc(8*(attention + mlp), fine=90)".
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from lengthwise.contract import Layout, SequenceModule
from lengthwise.errors import InputError
from lengthwise.measure import interleaved
from lengthwise.models.build import build
from lengthwise.models.stack import Stack
from lengthwise.models.vcc import Vcc
from lengthwise.reducers.blocks import Order
from lengthwise.systems.experiments import OnStep, Reader, initialise_by_width, progress
from lengthwise.systems.system import Figure, Run, System, at_least, at_most, of_seeds, reported
from lengthwise.tasks.slots import SlotQuestion
from lengthwise.training.fit import fit

SYSTEM = System(
    key="vcc",
    title="Vcc: Scaling Transformers to 128K Tokens or More by Prioritizing Important Tokens",
    arxiv="2305.04241",
    parts=["models.vcc", "reducers.blocks"],
    claim="with a few important tokens in full and the rest mostly as means of blocks, a trained encoder does as well"
    " at a third of the work",
)

TASK = SlotQuestion()
LESSONS = SlotQuestion(questions=TASK.places)
"""What the full encoder is trained on: a question in each of the first places, for as many answers an input."""

DIM, BATCH, STEPS, MORE_STEPS = 64, 16, 600, 200
BLOCK, FINE = 16, 8
LAYER = "attention(heads=4) + mlp"
LAYERS = f"chunked_attention(heads=4, chunk=64) + mlp + 2*({LAYER})"
LONG, LONG_FINE = 4112, 16


def reader() -> Reader:
    """An encoder with fresh weights, read where the question stands."""
    model = Reader(TASK.vocab_size, DIM, LAYERS, f"learned(length={TASK.length})")
    initialise_by_width(model)
    return model


@SYSTEM.experiment
def reproduce(run: Run) -> Iterator[Figure]:
    """One question about 512 tokens: an encoder trained in full, then compressed without and with further training.

    Layers 2 and 3 of 3 are compressed, with 8 of 32 blocks of 16 in full. Training goes on to 1200 steps where 600
    leave accuracy below 0.9, with the first two of the seeds, to finish in minutes. The places beside the question hold
    the first tokens of the context, in full, as padding takes no part. The full encoder is trained on inputs with 16
    questions, for as many answers a step; all else, the further training too, has one. All linear maps begin as N(0,
    1 / inputs). The check on a trained sentence model is left out: its weights can't be had everywhere.
    """
    seeds = run.seeds[:2]
    on_step = progress(run, len(seeds) * (2 * STEPS + MORE_STEPS))
    found = [one_seed(seed, on_step(f"seed {seed}")) for seed in seeds]
    middle = {name: statistics.mean(one[name] for one in found) for name in found[0]}
    over = of_seeds(seeds, "mean")
    yield reported(f"accuracy of the full encoder ({over})", middle["full"], note="to be at least 0.9")
    note = (
        f"by attention {middle['attention']:.3f}, by chance {middle['random']:.3f}, means alone {middle['means']:.3f}"
    )
    chosen = statistics.mean(one["attention"] / max(one["random"], 1e-9) for one in found)
    yield at_least(f"accuracy untrained, blocks chosen by attention over by chance ({over})", chosen, 1.5, note=note)
    kept = statistics.mean(one["trained"] / one["full"] for one in found)
    claimed = "equal or better scores at over 3 times less work"
    yield at_least(
        f"accuracy after {MORE_STEPS} further steps over that of the full encoder ({over})", kept, 0.9, claimed
    )
    for name, words in {"kept_untrained": "untrained", "kept_trained": "trained"}.items():
        yield reported(f"share of questions whose block is in full in layer 2, {words} ({over})", middle[name])
    rows = compressed_layers(compressed(reader())).rows(TASK.length - TASK.places + 1)
    yield at_most(
        "rows of a compressed layer over its tokens", rows / TASK.length, 0.35, note=f"{rows} of {TASK.length}"
    )
    times = layer_times()
    ratio = times["compressed"] / times["full"]
    yield at_most(f"forward time of a compressed layer over a full one, {LONG} tokens", ratio, 0.6, "less than a third")
    times = step_times()
    yield reported(
        "time of a step of training of layers 2 and 3, compressed over full", times["compressed"] / times["full"]
    )


def one_seed(seed: int, on_step: OnStep | None = None) -> dict[str, float]:
    """The accuracies of all stages, and how often the question's block was worked on in full."""
    model = train_full(seed, on_step)
    found = {"full": accuracy(model)}
    forms: dict[str, tuple[str, int]] = {"attention": ("attention", FINE), "random": ("random", FINE)}
    for name, (select, fine) in {**forms, "means": ("attention", 0)}.items():
        torch.manual_seed(seed)
        found[name] = accuracy(compressed(model, select, fine))
    short = compressed(copy.deepcopy(model))
    found["kept_untrained"] = share_kept(short)
    torch.manual_seed(seed)
    settings = {"steps": MORE_STEPS, "learning_rate": 5e-4, "warmup": min(20, MORE_STEPS)}
    fit(short, TASK.batches(BATCH, seed=seed, start=2 * STEPS), **settings, loss=TASK.objective, on_step=on_step)  # type: ignore[arg-type]
    short.eval()
    return {**found, "trained": accuracy(short), "kept_trained": share_kept(short)}


def train_full(seed: int, on_step: OnStep | None = None) -> Reader:
    """The encoder in full, trained once or twice `STEPS` steps."""
    torch.manual_seed(seed)
    model = reader()
    for start in (0, STEPS):
        batches = LESSONS.batches(BATCH, seed=seed, start=start)
        settings = {"steps": STEPS, "learning_rate": 1e-3, "warmup": min(50, STEPS)}
        fit(model, batches, **settings, loss=LESSONS.objective, on_step=on_step)  # type: ignore[arg-type]
        if accuracy(model.eval()) >= 0.9:
            break
    return model


def compressed(model: Reader, select: str = "attention", fine: int | None = None) -> Reader:
    """The same model, weights shared, with its last two layers compressed; `FINE` blocks in full by default."""
    fine = FINE if fine is None else fine
    stack = model.encoder.stack
    layers = list(stack.layers)
    vcc = Vcc(layers[2:], block=BLOCK, fine=fine, places=TASK.places, select=select)  # type: ignore[arg-type]
    short = copy.copy(model)
    short._modules = {**model._modules, "encoder": copy.copy(model.encoder)}
    short.encoder._modules = {**model.encoder._modules, "stack": Stack([*layers[:2], vcc])}  # type: ignore[list-item]
    return short.eval()


def compressed_layers(model: Reader) -> Vcc:
    """The compressed layers of a model."""
    layers = model.encoder.stack.layers[-1]
    if not isinstance(layers, Vcc):
        raise InputError("the model's last layers aren't compressed")
    return layers


@torch.no_grad()
def accuracy(model: Reader, examples: int = 1000) -> float:
    """Share of fresh questions answered right, taken 100 at a time."""
    parts = range(0, examples, 100)
    return statistics.mean(TASK.score(model, examples=100, seed=1_000_003 + part) for part in parts)


@torch.no_grad()
def share_kept(model: Reader, examples: int = 200) -> float:
    """Share of fresh questions whose slot is in a block that layer 2 works on in full, or in one of the places."""
    vcc = compressed_layers(model)
    example = TASK.batch(examples, seed=1_000_003)
    found: list[Tensor] = []
    split = vcc.split

    def recorded(z: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        chosen, others = split(z, seen)
        found.append(chosen)
        return chosen, others

    vcc.split = recorded  # type: ignore[method-assign]
    try:
        TASK.logits(model, example)
    finally:
        del vcc.split
    layout = TASK.layout(example)
    kind = example.tokens[example.mask] - TASK.prompts.start
    slot = ((example.tokens // TASK.values == kind[:, None]) & (example.tokens < TASK.prompts.start)).long().argmax(1)
    order = Order.of(~layout.padding, example.mask, TASK.places, BLOCK)
    place = (order.index[:, : TASK.length] == slot[:, None]).long().argmax(1)
    block = (place - TASK.places).div(BLOCK, rounding_mode="floor")
    return float(((place < TASK.places) | (found[0] == block[:, None]).any(1)).float().mean())


@torch.no_grad()
def layer_times() -> dict[str, float]:
    """Median seconds of one layer, compressed with its way there and back, and in full, over a long row."""
    torch.manual_seed(0)
    full = build(LAYER, DIM, causal=False, norm="layernorm").eval()
    vcc = Vcc(list(full.layers), block=BLOCK, fine=LONG_FINE, places=TASK.places).eval()  # type: ignore[arg-type, call-overload]
    x = torch.randn(1, LONG, DIM)
    return interleaved({"compressed": partial(vcc, x), "full": partial(full, x)}, repeats=9, warmup=2)


def step_times() -> dict[str, float]:
    """Median seconds of a forward and a backward pass of layers 2 and 3."""
    torch.manual_seed(0)
    full = build(f"2*({LAYER})", DIM, causal=False, norm="layernorm").train()
    vcc = Vcc(list(full.layers), block=BLOCK, fine=FINE, places=TASK.places).train()  # type: ignore[arg-type, call-overload]
    x, layout = torch.randn(BATCH, TASK.length, DIM), TASK.layout(TASK.batch(BATCH))
    calls = {"compressed": partial(one_step, vcc, x, layout), "full": partial(one_step, full, x, layout)}
    return interleaved(calls, repeats=5)


def one_step(layers: SequenceModule, x: Tensor, layout: Layout) -> None:
    """A forward and a backward pass."""
    layers(x, None, layout)[0].sum().backward()
    layers.zero_grad()
