"""Copying: a Transformer finds again what it has read, and a state of fixed size can't hold all of it."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lengthwise.mixers.attention import Attention
from lengthwise.models.language_model import LanguageModel
from lengthwise.systems.experiments import OnStep, initialise_by_width, parameters, progress
from lengthwise.systems.system import Figure, Run, System, at_least, at_most, reported
from lengthwise.tasks.letters import LetterCopying, Letters
from lengthwise.training.fit import fit

SYSTEM = System(
    key="repeat-after-me",
    title="Repeat After Me: Transformers are Better than State Space Models at Copying",
    arxiv="2402.01032",
    parts=[
        "positions.hard_alibi",
        *(f"tasks.{name}" for name in ("letter_copying", "duplicate_ngram", "prefix_lookup", "suffix_lookup")),
        "tasks.phone_book",
        "mixers.gru",
        "mixers.mamba",
    ],
    claim="a Transformer learns to copy from far fewer strings than a model with a state of fixed size, and goes on to"
    " longer ones; two layers of it copy by looking up the last letters",
    expression="12*(attention(heads=16, pattern=hard_alibi(masked=8)) + mlp)",
    pattern="hard_alibi(heads=8, masked=4)",
)

ARMS = {
    "Hard-ALiBi Transformer": ("2*(attention(heads=8, pattern=hard_alibi(masked=4)) + mlp)", 64),
    "GRU": ("gru", 128),
    "Mamba": ("2*mamba(state_dim=8)", 80),
}
"""Layers and width of each model, for about 100,000 parameters."""

TRANSFORMER = "Hard-ALiBi Transformer"
RATES = (2e-3, 5e-4)
ROW, BATCH, STEPS = 64, 32, 1200
TRAINED, LENGTHS = (4, 12), (12, 24, 48)
EVERY, LEARNT, COPIED = 50, 0.95, 128
STRING, NGRAM, STRINGS = 200, 5, 50
"""Letters of the strings that the hand-built copier is given, the n-grams by which it copies, and how many strings."""


@dataclass(frozen=True)
class Outcome:
    """What one training gave: the steps until `LEARNT`, infinity where it wasn't reached, the largest share of
    characters right at the longest trained length, and the share at each length in the end."""

    steps: float
    peak: float
    right: dict[int, float]


@SYSTEM.experiment
def reproduce(run: Run) -> Iterator[Figure]:
    """Copying of strings of 4 to 12 letters, packed in rows of 64; then strings of up to 48. Two exact parts first.

    With the first two of the seeds, each model is trained on the same 1200 batches of 32 rows by AdamW with weight
    decay 0.1, at both learning rates, with 100 steps of warm-up and a cosine to 0. The rate that needs fewer steps in
    the median counts, then the one that is better at length 12. Every 50 steps 128 strings of 12 letters are copied.
    Characters count where the true ones stand before them. The Mamba is wider than the Transformer, since it has fewer
    parameters at equal width.
    """
    run.progress("copying by hand-set weights", 0.0)
    yield from exact()
    sizes = {name: parameters(build(name)) for name in ARMS}
    for name, size in sizes.items():
        yield reported(f"parameters, {name}", size)
    seeds = run.seeds[:2]
    jobs = list(itertools.product(seeds, ARMS, RATES))
    named = progress(run, len(jobs) * STEPS)
    found: dict[str, dict[float, list[Outcome]]] = {name: {rate: [] for rate in RATES} for name in ARMS}
    for seed, name, rate in jobs:
        found[name][rate].append(train(name, seed, rate, named(f"{name}, learning rate {rate:g}, seed {seed}")))
    over = f"median of {len(seeds)} seeds"
    best = {name: max((summary(outcomes) for outcomes in rates.values()), key=better) for name, rates in found.items()}
    for name, outcome in best.items():
        until = strings(min(outcome.steps, STEPS))
        note = "never" if math.isinf(outcome.steps) else ""
        yield reported(f"strings until {LEARNT:.0%} of characters are right, {name} ({over})", until, note=note)
        for length in LENGTHS:
            yield reported(f"characters right of {length} letters, {name} ({over})", outcome.right[length])
    ours = best.pop(TRANSFORMER)
    name = f"characters right of {TRAINED[1]} letters at the best check, {TRANSFORMER} ({over})"
    yield at_least(name, ours.peak, LEARNT)
    yield needed(ours.steps, min(outcome.steps for outcome in best.values()), over)
    at = LENGTHS[1]
    yield at_least(
        f"characters right of {at} letters, over the best other model ({over})",
        ours.right[at] / max(outcome.right[at] for outcome in best.values()),
        1.5,
        claimed="nearly all right to 20 times the trained length, others fail at once",
    )


def exact() -> Iterator[Figure]:
    """The copier whose weights are set, and the most that a state can copy."""
    task = LetterCopying(fewest=STRING, most=STRING)
    model, example = ngram_copier(task, NGRAM), task.alone(STRINGS, seed=1_000_003)
    unique = unique_ngrams(example.tokens[:, 1 : STRING + 1], NGRAM)
    with torch.no_grad():
        logits = torch.cat([model(part)[0] for part in example.tokens.split(10)])
    right = (logits.argmax(-1) == example.targets)[unique][example.mask[unique]]
    yield at_least(
        f"characters that hand-set weights copy right, of strings of {STRING} letters without a {NGRAM}-gram that comes"
        " twice",
        float(right.float().mean()),
        1.0,
        claimed="all",
        note=f"{int(unique.sum())} of {STRINGS} strings",
    )
    apart = abs(best_accuracy(states=4, letters=2, length=3) - counting_bound(4, letters=2, length=3))
    yield at_most("difference of the best of all models with 4 states from the bound, 3 letters out of 2", apart, 0.0)


def build(name: str) -> LanguageModel:
    """A model of the task's tokens."""
    layers, dim = ARMS[name]
    model = LanguageModel(LetterCopying().vocab_size, dim, layers, position="none", norm="layernorm")
    if name == TRANSFORMER:
        initialise_by_width(model)
    return model


def train(
    name: str, seed: int, learning_rate: float, on_step: OnStep | None = None, *, steps: int | None = None
) -> Outcome:
    """Train a model to copy, and measure it."""
    torch.manual_seed(seed)
    model, steps = build(name), steps or STEPS
    task = LetterCopying(length=ROW, fewest=TRAINED[0], most=TRAINED[1])
    checked: dict[int, float] = {}

    def watch(step: int, loss: float) -> None:
        if (step + 1) % EVERY == 0:
            checked[step + 1] = characters(model, TRAINED[1])
        if on_step is not None:
            on_step(step, loss)

    fit(
        model,
        task.batches(BATCH, seed=seed),
        steps=steps,
        learning_rate=learning_rate,
        warmup=min(100, steps // 4),
        final=0.0,
        loss=task.objective,
        on_step=watch,
    )
    learnt = (step for step, share in checked.items() if share >= LEARNT)
    right = {length: characters(model, length) for length in LENGTHS}
    return Outcome(next(learnt, math.inf), max(checked.values(), default=0.0), right)


def characters(model: LanguageModel, letters: int) -> float:
    """Share of the characters of copies, their ends too, that are right where those before them are given. The model
    is left as it was."""
    task, was_training = LetterCopying(fewest=letters, most=letters), model.training
    example = task.alone(COPIED, seed=1_000_003)
    with torch.no_grad():
        right = task.metric(model.eval()(example.tokens)[0], example)
    model.train(was_training)
    return right


def needed(ours: float, theirs: float, over: str) -> Figure:
    """The steps of the fastest other model over those of the Transformer. One that never learns needs more than any."""
    note = "the others never get there" if math.isinf(theirs) else ""
    ratio = 0.0 if math.isinf(ours) else min(theirs, STEPS) / ours
    name = f"strings that the fastest other model needs, over those of the Transformer ({over})"
    figure = at_least(name, ratio, 2.0, claimed="100 times, of 300 letters", note=note)
    return replace(figure, holds=figure.holds or math.isinf(theirs) > math.isinf(ours))


def summary(outcomes: list[Outcome]) -> Outcome:
    """The median over seeds."""
    right = {length: statistics.median(o.right[length] for o in outcomes) for length in outcomes[0].right}
    steps, peak = statistics.median(o.steps for o in outcomes), statistics.median(o.peak for o in outcomes)
    return Outcome(steps, peak, right)


def better(outcome: Outcome) -> tuple[float, float]:
    """By what learning rates are compared."""
    return -outcome.steps, outcome.right[LENGTHS[0]]


def strings(steps: float) -> float:
    """How many strings so many batches hold, on average."""
    mean = LetterCopying().tokens_of(0) + sum(TRAINED)
    return steps * BATCH * ROW / mean


def counting_bound(states: float, *, letters: int, length: int) -> float:
    """|S| / D^n: the most strings of n letters out of D that a model with so many states can copy, as a share of all,
    since one state can be followed by one copy only. 2^b states for a state of b bits."""
    return min(1.0, states / letters**length)


def best_accuracy(*, states: int, letters: int, length: int) -> float:
    """The same of the best model among all, by trying every table that gives the next state of a state and a letter."""
    tables = torch.cartesian_prod(*[torch.arange(states)] * (states * letters)).view(-1, states, letters)
    number = torch.arange(len(tables))
    ends = []
    for string in itertools.product(range(letters), repeat=length):
        state = torch.zeros_like(number)
        for letter in string:
            state = tables[number, state, letter]
        ends.append(state)
    reached = torch.nn.functional.one_hot(torch.stack(ends, 1), states).amax(1).sum(1)
    return float(reached.max()) / letters**length


def unique_ngrams(strings: Tensor, n: int) -> Tensor:
    """Whether no n letters in a row come twice in each string, [strings]."""
    if strings.shape[1] < n:
        return torch.ones(len(strings), dtype=torch.bool)
    return torch.tensor([len(grams.unique(dim=0)) == len(grams) for grams in strings.unfold(1, n, 1)])


def ngram_copier(task: Letters, n: int, sharpness: float = 30.0) -> LanguageModel:
    """Two layers of attention, with weights that are set and not learnt, that copy strings without n letters that come
    twice.

        layer 1     head a ≤ n:  u_a = mean of e(x_{t−a}) … e(x_t)        (a + 1) u_a − a u_{a−1} = e(x_{t−a})
        layer 2     p_tj ∝ exp(β Σ_{i<n} 2^{n−1−i} ⟨e(x_{t−i}), e(x_{j−1−i})⟩)        o_t = Σ_j p_tj e(x_j)

    e: one of as many directions as there are tokens, to which a window of a + 1 tokens with equal weights adds up. The
    second layer finds what followed the last n tokens the first time. Weights that halve put more recent tokens before
    all older ones, so that the first letters after `|`, which count as ones after `$`, are found by fewer than n. The
    letter after a string's last is `|`, which is answered by the end.

    task: whose tokens are read. sharpness: β. No norms and no MLP. Parameters don't depend on the length.
    """
    count = task.vocab_size
    layers = (
        f"attention(heads={n + 1}, head_dim={count}, pattern=hard_alibi(masked={n + 1}))"
        f" + attention(heads=1, head_dim={n * count}, pattern=hard_alibi(masked=0), scale={sharpness})"
    )
    # The stream holds the token, those n before it, and the answer, each in as many channels as there are tokens.
    model = LanguageModel(count, (n + 2) * count, layers, position="none")
    model.norm = nn.Identity()
    for branch in model.stack.layers:
        branch.norm = nn.Identity()
    gather, find = (module for module in model.modules() if isinstance(module, Attention))
    one, read = torch.eye(count), torch.eye(count)
    same = torch.eye(count)
    same[task.begin, task.separator] = 1.0
    same[task.separator, task.separator] = 0.0
    read[[task.end, task.separator]] = read[[task.separator, task.end]]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embedding.weight[:, :count] = one
        model.head.weight[:, -count:] = read
        blocks(gather.v_proj.weight, count)[:, 0] = one
        heads = blocks(gather.o_proj.weight, count)
        for back in range(1, n + 1):
            heads[back, back], heads[back, back - 1] = (back + 1) * one, -back * one
        queries, keys = blocks(find.q_proj.weight, count), blocks(find.k_proj.weight, count)
        for back in range(n):
            queries[back, back], keys[back, back + 1] = 2 ** (n - 1 - back) * same, same
        blocks(find.v_proj.weight, count)[0, 0] = one
        blocks(find.o_proj.weight, count)[n + 1, 0] = one
    return model.eval()


def blocks(weight: Tensor, size: int) -> Tensor:
    """A view of a matrix as blocks, [rows of blocks, columns of blocks, size, size]."""
    return weight.unflatten(1, (-1, size)).unflatten(0, (-1, size)).transpose(1, 2)
