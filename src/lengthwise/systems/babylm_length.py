"""What is the Best Sequence Length for BabyLM: the length of training windows, chosen by task under one budget."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace

from torch import nn

from lengthwise.models.language_model import LanguageModel
from lengthwise.systems.experiments import corpus, parameters, progress
from lengthwise.systems.system import Figure, Run, System, at_least, at_most, reported
from lengthwise.tasks.minimal_pairs import MinimalPairs, code_pairs
from lengthwise.tasks.repeated_words import RepeatedWords, repeated_words
from lengthwise.training.lengths import LengthTable, Recommended, arrange, length_sweep, recommend

SYSTEM = System(
    key="babylm-length",
    title="What is the Best Sequence Length for BABYLM?",
    arxiv="2510.19493",
    parts=["training.lengths", "tasks.minimal_pairs", "tasks.repeated_words", "positions.learned"],
    claim="under one budget of tokens short windows suffice for grammar and long ones help tracking, so that the best"
    " length of training depends on the task",
    expression="12*(attention(bias=true) + mlp(activation=relu))",
)

LENGTHS = (32, 128, 512)
TOKENS_PER_UPDATE, UPDATES, WARMUP = 1024, 500, 50
WINDOWS_PER_UPDATE = 8
PAIRS, WORDS = 300, 400
DIM = 64

LOCAL, DISTANT = "local pairs", "distant identifiers"
TOLERANCES = {LOCAL: 0.02, DISTANT: 0.1}
"""Of the accuracy, and of the nats per byte."""

TRANSFORMER = "4*(attention(heads=4, bias=true) + mlp(activation=relu))"
MAMBA = "2*mamba"


@SYSTEM.experiment
def reproduce(run: Run) -> Iterator[Figure]:
    """A Transformer with learned positions and a Mamba, each trained on windows of 32, 128 and 512 bytes.

    Every model reads 512,000 bytes of the standard library's source text in 500 updates of 1024 bytes. Local: the
    accuracy on 300 minimal pairs of 28 bytes of files held out. Distant: nats per byte of identifiers whose last
    showing lies 64 to 400 bytes back, of which a model sees as many bytes as it was trained with. Mamba, and the
    Transformer with 8 windows in every update, are reported beside it, trained with the first seed alone.
    """
    arranged = [arrange(length, budget(), per_update=WINDOWS_PER_UPDATE, mode="equal_windows_per_update").updates
                for length in LENGTHS]  # fmt: skip
    on_step = progress(run, (len(run.seeds) + 1) * len(LENGTHS) * UPDATES + sum(arranged))
    tables = [sweep(transformer, seed, on_step(f"Transformer, seed {seed}")) for seed in run.seeds]
    yield from transformer_figures(tables)
    first = run.seeds[0]
    yield from lines("Transformer", tables[0], first)
    yield from lines("Mamba", sweep(mamba, first, on_step(f"Mamba, seed {first}")), first)
    other = sweep(transformer, first, on_step("Transformer, equal windows"), mode="equal_windows_per_update")
    yield from lines(f"Transformer, {WINDOWS_PER_UPDATE} windows in every update", other, first)
    sizes = (parameters(transformer(LENGTHS[0])), parameters(mamba(LENGTHS[0])))
    yield reported(
        "parameters of the Transformer over those of Mamba", sizes[0] / sizes[1], note="{} and {}".format(*sizes)
    )


def transformer_figures(tables: list[LengthTable]) -> Iterator[Figure]:
    """What the claim says of the Transformer."""
    over = f"median of {len(tables)} seeds" if len(tables) > 1 else "one seed"
    middle = median(tables)
    scores = {task: {row.length: row.scores[task] for row in middle.rows} for task in (LOCAL, DISTANT)}
    shown = {task: ", ".join(f"{n}: {value:.3f}" for n, value in found.items()) for task, found in scores.items()}
    *short, long = (scores[LOCAL][n] for n in LENGTHS)
    yield at_least(
        f"accuracy on local pairs, the better of {LENGTHS[0]} and {LENGTHS[1]} less {LENGTHS[-1]} ({over})",
        max(short) - long,
        -TOLERANCES[LOCAL],
        claimed="BLiMP 73.9 % at 256, 71.9 % at 512",
        note=shown[LOCAL],
    )
    yield at_least(
        f"nats per byte of distant identifiers, {LENGTHS[0]} less {LENGTHS[-1]} ({over})",
        scores[DISTANT][LENGTHS[0]] - scores[DISTANT][LENGTHS[-1]],
        TOLERANCES[DISTANT],
        claimed="analogies and reading gain from longer windows",
        note=shown[DISTANT],
    )
    best = best_of_both(middle)
    yield at_most(
        f"lengths that are best in both tasks by more than the tolerance ({over})",
        int(best is not None),
        0,
        claimed="the best length depends on the task",
        note="" if best is None else f"{best} is",
    )


def median(tables: list[LengthTable]) -> LengthTable:
    """The table of the medians over seeds of every score."""
    rows = []
    for at, row in enumerate(tables[0].rows):
        scores = {task: statistics.median(table.rows[at].scores[task] for table in tables) for task in row.scores}
        rows.append(replace(row, scores=scores))
    return replace(tables[0], rows=tuple(rows))


def lines(name: str, table: LengthTable, seed: int) -> Iterator[Figure]:
    """The recommended lengths of one sweep, the scores beside them, and the shortest's share of the longest's time."""
    found: Recommended = recommend(table, TOLERANCES)
    for task in (LOCAL, DISTANT):
        note = ", ".join(f"{row.length}: {row.scores[task]:.3f}" for row in table.rows)
        yield reported(f"{name}: length recommended for {task}, seed {seed}", found.by_task[task], note=note)
    note = "within the tolerance of the best in both" if found.agrees else "none is within the tolerance in both"
    yield reported(f"{name}: length recommended overall, seed {seed}", found.overall, claimed="512", note=note)
    times = ", ".join(f"{row.length}: {row.seconds:.0f} s" for row in table.rows)
    relative = table.relative_seconds(table.rows[0])
    yield reported(f"{name}: training time at {LENGTHS[0]} over that at {LENGTHS[-1]}", relative, note=times)


def best_of_both(table: LengthTable) -> int | None:
    """The length that is best in both tasks, with every other worse by more than the tolerance; None where none is."""
    best = table.best(LOCAL)
    clear = all(
        table.best(task) is best
        and all(table.shortfall(task, row) > TOLERANCES[task] for row in table.rows if row is not best)
        for task in (LOCAL, DISTANT)
    )
    return best.length if clear else None


def budget() -> int:
    """Tokens that every model is trained on."""
    return TOKENS_PER_UPDATE * UPDATES


def sweep(
    model_fn: Callable[[int], nn.Module],
    seed: int,
    on_step: Callable[[int, float], None] | None = None,
    mode: str = "equal_tokens_per_update",
) -> LengthTable:
    """Models of every length, trained with one seed and scored on both tasks."""
    pairs, words = held_out_tasks()
    return length_sweep(
        model_fn,
        corpus()[0],
        LENGTHS,
        budget(),
        {LOCAL: lambda model, _: pairs.accuracy(model), DISTANT: lambda model, length: words.nll(model, length)},
        mode,
        per_update=TOKENS_PER_UPDATE if mode == "equal_tokens_per_update" else WINDOWS_PER_UPDATE,
        losses=[DISTANT],
        learning_rate=2e-3,
        warmup=WARMUP,
        seed=seed,
        on_step=None if on_step is None else lambda _, step, loss: on_step(step, loss),
    )


@functools.cache
def held_out_tasks() -> tuple[MinimalPairs, RepeatedWords]:
    """Local minimal pairs, and identifiers that come again far back, of files that are held out."""
    held_out = corpus()[1]
    return code_pairs(held_out, PAIRS), repeated_words(held_out, WORDS, length=max(512, *LENGTHS))


def transformer(length: int) -> LanguageModel:  # noqa: ARG001 - the same for every length
    """A small OPT: normed before each branch, ReLU, biases, learned positions, the embedding as output layer."""
    position = f"learned(length={max(LENGTHS)})"
    return LanguageModel(256, DIM, TRANSFORMER, position=position, norm="layernorm", tie=True)


def mamba(length: int) -> LanguageModel:  # noqa: ARG001
    """The library's Mamba of the same width."""
    return LanguageModel(256, DIM, MAMBA, position="none")
