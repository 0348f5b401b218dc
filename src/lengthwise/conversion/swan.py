"""A trained rotary language model as SWAN: global attention without positions, then windows with rotary positions.

    converted = swan(model, window=512, period=4)       all weights kept, to be trained further at a low rate
    law = fit_scale(converted, texts, windows=[(4096, 8192), (8192, 16384)], trained=4096)
    converted = scaled(converted, law)                  global attention that gets sharper beyond the trained length

Layers 0, period, 2 period … see everything and are told no positions; every other sees the latest `window` tokens. The
conversion changes what layers compute, so that it costs quality until the model has been trained further, for about 2 %
of its first training in the paper.

Puvvada et al. 2025, arXiv 2504.08719.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from lengthwise.conversion.rebuild import rebuild
from lengthwise.errors import InputError, unknown
from lengthwise.mixers.attention import Attention
from lengthwise.models.expression import Expression, Leaf, Repeat, Sum, parse
from lengthwise.models.language_model import LanguageModel
from lengthwise.positions.temperature import Constant, LogScaling, LogSlope, LogTemperature

FACTORS = tuple(1 + 0.05 * step for step in range(21))
"""The factors on the global logits that are tried, from 1 to 2."""

CHUNK = 1024
"""Tokens that are read at once, where a text is longer."""

Edit = Callable[[Leaf, int], Leaf]
"""What becomes of an attention leaf, given how many attention layers come before it."""


def swan(model: LanguageModel, window: int = 512, period: int = 4) -> LanguageModel:
    """The model with every `period`-th attention layer, from the first on, global and without positions, and a window
    in all others; with copies of its weights.

    Raises InputError for a model without rotary positions, or whose attention is narrowed already or stands inside of a
    combinator, and for impossible sizes.
    """
    if window < 1 or period < 1:
        raise InputError(f"window and period must be at least 1, got {window} and {period}")
    layers = attention_layers(model)
    if not all(layer.position is not None and layer.position.has("rotate") for layer in layers):
        raise InputError("swan takes a language model whose attention has rotary positions in all layers")

    def edit(leaf: Leaf, number: int) -> Leaf:
        narrowed = {"window", "pattern"} & dict(leaf.kwargs).keys()
        if narrowed:
            raise InputError(f"attention is narrowed already: {leaf}")
        return changed(leaf, position=None) if number % period == 0 else changed(leaf, window=window)

    return rebuild(model, layers=rewritten(model, edit, period))


def scaled(model: LanguageModel, law: LogTemperature | None) -> LanguageModel:
    """The model with a law for the logits of its global layers without positions, or with none; with copies of its
    weights."""
    names = {LogScaling: "log_scaling", LogSlope: "log_slope"}
    value = None if law is None else Leaf(names[type(law)], kwargs=tuple(asdict(law).items()))
    layers = attention_layers(model)

    def edit(leaf: Leaf, number: int) -> Leaf:
        return changed(leaf, temperature=value) if is_global(layers[number]) else leaf

    global_layers(model)
    return rebuild(model, layers=rewritten(model, edit))


def attention_layers(model: LanguageModel) -> list[Attention]:
    """The softmax attention of a model, in order."""
    return [module for module in model.modules() if type(module) is Attention]


def is_global(layer: Attention) -> bool:
    """Whether a layer sees everything and is told no positions."""
    hooks = layer.position is not None and (layer.position.has("rotate") or layer.position.has("bias"))
    return layer.window is None and layer.keeps_all and not hooks


def global_layers(model: LanguageModel) -> list[Attention]:
    """Those layers of a model. Raises InputError where it has none."""
    found = [layer for layer in attention_layers(model) if is_global(layer)]
    if not found:
        raise InputError("the model has no global attention without positions; swan(model) gives it some")
    return found


def changed(leaf: Leaf, **arguments: object) -> Leaf:
    """The leaf with these arguments instead of its own of their names."""
    return replace(leaf, kwargs=tuple({**dict(leaf.kwargs), **arguments}.items()))


def rewritten(model: LanguageModel, edit: Edit, period: int = 1) -> str:
    """The model's expression with every attention leaf edited; a repeat is written by periods where it can be."""
    count = 0

    def visit(tree: Expression) -> Expression:
        nonlocal count
        if isinstance(tree, Sum):
            return Sum(tuple(visit(term) for term in tree.terms))
        if isinstance(tree, Repeat):
            return joined([visit(tree.body) for _ in range(tree.count)], period)
        if tree.name != "attention":
            return tree
        count += 1
        return edit(tree, count - 1)

    found = visit(parse(model.config["layers"]))
    if count != len(attention_layers(model)):
        raise InputError(f"attention stands inside of a combinator, where it isn't rewritten: {model.config['layers']}")
    return str(found)


def joined(bodies: Sequence[Expression], period: int) -> Expression:
    """Bodies one after the other, with repeats instead of neighbours that are equal."""
    if len(bodies) >= 2 * period and list(bodies[period:]) == list(bodies[:-period]):
        whole, left = divmod(len(bodies), period)
        terms = [Repeat(whole, joined(bodies[:period], 1)), *([joined(bodies[:left], 1)] if left else [])]
    else:
        runs: list[tuple[Expression, int]] = []
        for body in bodies:
            runs = [*runs[:-1], (body, runs[-1][1] + 1)] if runs and runs[-1][0] == body else [*runs, (body, 1)]
        terms = [Repeat(number, body) if number > 1 else body for body, number in runs]
    flat = [inner for term in terms for inner in (term.terms if isinstance(term, Sum) else (term,))]
    return flat[0] if len(flat) == 1 else Sum(tuple(flat))


def fit_scale(
    model: LanguageModel,
    texts: Int[Tensor, "rows tokens"],
    windows: Sequence[tuple[int, int]],
    trained: int,
    *,
    law: str = "log_slope",
    factors: Sequence[float] = FACTORS,
) -> LogTemperature:
    """The law of the global logits that suits texts longer than the trained length.

    For each window of positions the factor with the lowest perplexity, of those tried, then by least squares over the
    windows' middles n and factors s: b of s = 1 + b log(n / L₀) with law "log_slope", a of
    s = log(a + n) / log(a + L₀) with "log_scaling". One pass over the texts for each factor.

    texts: token sequences of one more token than the last window's end. windows: pairs of a first position and the one
    behind the last. trained: L₀. Raises InputError for windows that begin before the trained length ends or lie
    outside of the texts, and for another law.
    """
    if law not in LAWS:
        raise unknown("law", law, LAWS)
    best = best_factors(model, texts, windows, factors)
    middles = [(begin + end + 1) / 2 for begin, end in windows]
    if min(middles) <= trained:
        raise InputError(f"windows must lie beyond the trained length, {trained}, got {list(windows)}")
    return LAWS[law](trained, middles, best)


@torch.no_grad()
def best_factors(
    model: LanguageModel,
    texts: Int[Tensor, "rows tokens"],
    windows: Sequence[tuple[int, int]],
    factors: Sequence[float] = FACTORS,
) -> list[float]:
    """For each window of positions, the factor on the logits of the global layers with the lowest perplexity there."""
    length = texts.shape[1] - 1
    if not windows or not all(0 <= begin < end <= length for begin, end in windows):
        raise InputError(f"windows must lie within the {length} predictions of the texts, got {list(windows)}")
    layers = global_layers(model)
    before = [layer.temperature for layer in layers]
    found = []
    try:
        for factor in factors:
            for layer in layers:
                layer.temperature = Constant(1 / factor)
            nats = nats_by_position(model, texts)
            found.append([float(nats[begin:end].mean()) for begin, end in windows])
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer.temperature = was
    return [factors[int(number)] for number in torch.tensor(found).argmin(0)]


@torch.no_grad()
def nats_by_position(model: LanguageModel, texts: Int[Tensor, "rows tokens"]) -> Float[Tensor, " length"]:
    """Nats of each token after the first, the mean over the texts, which are read in chunks."""
    state, losses = None, []
    for begin in range(0, texts.shape[1] - 1, CHUNK):
        piece = texts[:, begin : begin + CHUNK + 1]
        logits, state = model(piece[:, :-1], state)
        losses.append(functional.cross_entropy(logits.float().transpose(1, 2), piece[:, 1:], reduction="none").mean(0))
    return torch.cat(losses)


def fit_slope(trained: int, middles: Sequence[float], factors: Sequence[float]) -> LogSlope:
    """b = Σ x (s − 1) / Σ x², x = log(n / L₀), and not below 0."""
    x = [math.log(n / trained) for n in middles]
    rise = sum(x_i * (s - 1) for x_i, s in zip(x, factors, strict=True))
    return LogSlope(trained, max(0.0, rise / sum(x_i**2 for x_i in x)))


def fit_offset(trained: int, middles: Sequence[float], factors: Sequence[float]) -> LogScaling:
    """a between 1 and 1e6 L₀ by least squares, on a grid of log a with steps of 0.01. As a grows, s falls to 1."""
    a = torch.arange(0, math.log(1e6 * trained), 0.01, dtype=torch.float64).exp()[:, None]
    n, s = torch.tensor(middles, dtype=torch.float64), torch.tensor(factors, dtype=torch.float64)
    error = (torch.log(a + n) / torch.log(a + trained) - s).square().sum(1)
    return LogScaling(trained, float(a[error.argmin(), 0]))


LAWS: dict[str, Callable[[int, Sequence[float], Sequence[float]], LogTemperature]] = {
    "log_slope": fit_slope,
    "log_scaling": fit_offset,
}
"""How the number of each law is fitted, by name."""


@torch.no_grad()
def perplexity_beyond(
    model: LanguageModel, text: Int[Tensor, " tokens"], lengths: Sequence[int], last: int = 1024
) -> list[float]:
    """exp of the mean nats of the `last` tokens before each length of one text, which is read once in chunks: beyond
    the trained length it shows how a model fails or gains. Different lengths score different tokens."""
    wrong = [length for length in lengths if not last <= length < len(text)]
    if wrong:
        raise InputError(f"a context must have at least {last} tokens and be shorter than the text, got {wrong[0]}")
    nats = nats_by_position(model, text[None, : max(lengths) + 1])
    return [float(nats[length - last : length].mean().exp()) for length in lengths]
