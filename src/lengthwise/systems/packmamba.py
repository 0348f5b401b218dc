"""PackMamba: sequences of different lengths packed in rows, against one at a time and padded batches."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor, nn

from lengthwise.measure import interleaved
from lengthwise.models.language_model import LanguageModel
from lengthwise.systems.system import Figure, Run, System, at_least, at_most, of_seeds, reported
from lengthwise.tasks.corpus import standard_library
from lengthwise.training.batches import Rows
from lengthwise.training.packing import Packing, arrival, greedy, next_token_rows

SYSTEM = System(
    key="packmamba",
    title="PackMamba: Efficient Processing of Variable-Length Sequences in Mamba Training",
    arxiv="2408.03865",
    parts=["mixers.mamba", "ops.selective_scan", "ops.short_convolution", "training.packing"],
    claim="sequences packed in rows train Mamba as they do one by one, several times faster and almost without padding",
    expression="24*mamba",
)

FUNCTIONS, SHORTEST, LONGEST = 512, 16, 512
BATCH, ROW = 16, 2048
LAYERS, DIM = "2*mamba(state_dim=8)", 64
REPEATS = 3


@dataclass(frozen=True)
class Measured:
    """What one seed gives: differences, the share of padding of each packer and way, and tokens a second of each way.

    logits, gradients: largest difference of packed from alone, gradients relative to the largest of their parameter.
    leak: largest change of the others when the first of a row changes. ignored: as logits, without borders.
    """

    logits: float
    gradients: float
    leak: float
    ignored: float
    padding: dict[str, float]
    rates: dict[str, float]


@SYSTEM.experiment
def reproduce(run: Run) -> Iterator[Figure]:
    """Forward and backward over 512 functions of the standard library's source, their first 512 bytes at most.

    One by one; in batches of 16 padded to their longest, in random order; in rows of 2048 packed by the greedy packer,
    one row at a time. The loss is the sum over all bytes, so that all three give the same gradient. A seed draws the
    functions and the model; differences are the largest of all seeds, rates the medians.
    """
    seeds = of_seeds(run.seeds)
    found = [measure(run, done, seed) for done, seed in enumerate(run.seeds)]
    note = "float32"
    yield at_most("largest difference of a logit, packed from alone", max(m.logits for m in found), 1e-5, "none", note)
    worst = max(m.gradients for m in found)
    yield at_most("the same of the summed gradients, relative to a parameter's largest", worst, 1e-4, "none", note)
    yield at_most("change of later functions when the first of a row changes", max(m.leak for m in found), 0.0, "none")
    ignored = min(m.ignored for m in found)
    yield at_least("difference of a logit where borders are ignored", ignored, 1e-3, note="negative control")
    shares = {name: max(m.padding[name] for m in found) for name in found[0].padding}
    yield at_most("padding of the greedy packer", shares["packed"], 0.02, "0.41 %")
    less = max(m.padding["packed"] - m.padding["arrival"] for m in found)
    note = f"in order of arrival: {shares['arrival']:.3f}"
    yield Figure("padding of the greedy packer above that in order of arrival", less, "< 0", "19.1 %", less < 0, note)
    rates = {name: statistics.median(m.rates[name] for m in found) for name in found[0].rates}
    for name, least, claimed in (("alone", 1.5, "2.62 to 3.06"), ("padded", 1.15, "")):
        ratio = statistics.median(m.rates["packed"] / m.rates[name] for m in found)
        note = f"{name}: {rates[name]:.0f} tokens a second"
        yield at_least(f"tokens a second, packed over {name} ({seeds})", ratio, least, claimed, note)
    note = f"padding of batches of {BATCH}: {shares['padded']:.3f}"
    yield reported(f"real tokens a second, packed ({seeds})", rates["packed"], note=note)


def measure(run: Run, done: int, seed: int) -> Measured:
    """All that is measured with one seed, the run's `done`-th."""

    def tell(what: str, fraction: float) -> None:
        run.progress(f"{what}, seed {seed}", (done + fraction) / len(run.seeds))

    tell("functions", 0.0)
    sequences = draw(seed)
    torch.manual_seed(seed)
    model = LanguageModel(256, DIM, LAYERS, position="none")
    packings = ways([len(s) for s in sequences])
    padding = {name: share_of_padding(parts) for name, parts in packings.items()}
    padding["arrival"] = arrival([len(s) for s in sequences], ROW).padding
    steps = {name: steps_of(parts, sequences, borders=name == "packed") for name, parts in packings.items()}
    tell("differences", 0.1)
    alone, packed = (outputs(model, steps[name], packings[name]) for name in ("alone", "packed"))
    ignored = outputs(model, [replace(rows, layout=None) for rows in steps["packed"]], packings["packed"])
    slopes = {name: gradients(model, steps[name]) for name in ("alone", "packed")}
    relative = [apart([a], [b]) / float(a.abs().max()) for a, b in zip(slopes["alone"], slopes["packed"], strict=True)]
    leaked = leak(model, steps["packed"], packings["packed"])
    tell("time", 0.25)
    times = interleaved({name: partial(gradients, model, rows) for name, rows in steps.items()}, repeats=REPEATS)
    tokens = sum(map(len, sequences))
    rates = {name: tokens / seconds for name, seconds in times.items()}
    return Measured(apart(alone, packed), max(relative), leaked, apart(alone, ignored), padding, rates)


@cache
def functions() -> tuple[bytes, ...]:
    """The source text of every function and method in the standard library's top-level modules, in order; those inside
    others are part of them."""
    found = []
    for document in standard_library().documents:
        source = bytes(document.tokens)
        lines = source.splitlines(keepends=True)
        nodes: list[ast.AST] = [ast.parse(source)]
        while nodes:
            for node in ast.iter_child_nodes(nodes.pop()):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    found.append(b"".join(lines[node.lineno - 1 : node.end_lineno]).strip())
                else:
                    nodes.append(node)
    return tuple(found)


def draw(seed: int) -> list[Tensor]:
    """`FUNCTIONS` of those that are long enough, in random order, each cut at its `LONGEST`-th byte."""
    enough = [text for text in functions() if len(text) >= SHORTEST]
    chosen = np.random.default_rng(seed).choice(len(enough), FUNCTIONS, replace=False)
    return [torch.tensor(list(enough[i][:LONGEST])) for i in chosen]


def ways(lengths: Sequence[int]) -> dict[str, list[Packing]]:
    """What each way of training lays in the rows of each step."""
    sizes, numbers = tuple(lengths), range(len(lengths))
    batches = [numbers[begin : begin + BATCH] for begin in numbers[::BATCH]]
    packed = greedy(lengths, ROW)
    return {
        "alone": [Packing(((n,),), sizes, sizes[n]) for n in numbers],
        "padded": [Packing(tuple((n,) for n in batch), sizes, max(sizes[n] for n in batch)) for batch in batches],
        "packed": [packed.select([row]) for row in range(len(packed.rows))],
    }


def share_of_padding(steps: Sequence[Packing]) -> float:
    """Over all steps."""
    places = [len(packing.rows) * packing.width for packing in steps]
    return sum(packing.padding * n for packing, n in zip(steps, places, strict=True)) / sum(places)


def steps_of(packings: Sequence[Packing], sequences: Sequence[Tensor], borders: bool) -> list[Rows]:
    """The rows of each step; without `borders` no layout, which what ends in padding doesn't need."""
    steps = [next_token_rows(packing, sequences) for packing in packings]
    return steps if borders else [replace(rows, layout=None) for rows in steps]


@torch.no_grad()
def outputs(model: nn.Module, steps: Sequence[Rows], packings: Sequence[Packing]) -> list[Tensor]:
    """The logits of each sequence, by its number."""
    found: dict[int, Tensor] = {}
    for rows, packing in zip(steps, packings, strict=True):
        logits = packing.unpack(model(rows.inputs, None, rows.layout)[0])
        found |= {n: logits[n] for row in packing.rows for n in row}
    return [found[n] for n in sorted(found)]


def gradients(model: nn.Module, steps: Sequence[Rows]) -> list[Tensor]:
    """The gradient of the summed loss of all steps by each parameter."""
    model.zero_grad(set_to_none=True)
    for rows in steps:
        rows.loss(model, None)[0].backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


@torch.no_grad()
def leak(model: nn.Module, steps: Sequence[Rows], packings: Sequence[Packing]) -> float:
    """The largest change of the logits of all but the first sequence of each row, when every byte of that changes."""
    changes = [0.0]
    for rows, packing in zip(steps, packings, strict=True):
        first, *others = packing.rows[0]
        changed = rows.inputs.clone()
        changed[0, : packing.lengths[first]] = (changed[0, : packing.lengths[first]] + 1) % 256
        before, after = (packing.unpack(model(x, None, rows.layout)[0]) for x in (rows.inputs, changed))
        changes += [apart([before[n]], [after[n]]) for n in others]
    return max(changes)


def apart(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """The largest difference."""
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))
