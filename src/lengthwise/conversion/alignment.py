"""Attention that is as sharp on long inputs as it was at the trained length, by one temperature and no training.

    P_ij = softmax_j((c q_i · k_j + b_ij) / τ)          one τ for all layers and heads

The longer the input, the more keys share the probability of a query. τ < 1 is chosen so that a statistic of the
attention at the served length equals its value at the trained length without a temperature:

    max_prob    mean_i max_j P_ij                  entropy    mean_i − Σ_j P_ij log P_ij

    tau = fit_temperature(model, texts, train_length=512, test_length=4096)
    with attention_temperature(model, tau): ...
    fold_temperature(model, tau)                   the same for good, in the weights

Chi et al. 2023, arXiv 2311.00684.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lengthwise.contract import Layout
from lengthwise.conversion.attention_statistics import Statistics, observed
from lengthwise.errors import InputError, unknown
from lengthwise.mixers.attention import Attention
from lengthwise.mixers.cross_attention import CrossAttention
from lengthwise.models.encoder_decoder import EncoderDecoder
from lengthwise.positions.t5 import T5
from lengthwise.positions.temperature import Constant

WHERE = ("encoder", "decoder", "cross")
"""Attention that sees both sides, causal attention, and what a decoder reads the source by."""

LOWEST, TOLERANCE, TOKENS = 0.3, 1e-3, 16384
"""The least temperature that is tried, how near it is found, and how many tokens are read at once."""

Texts = Sequence[Tensor] | Tensor | Callable[[int], Sequence[Tensor] | Tensor]
"""Sequences to read, or a function from their length to them."""


@dataclass(frozen=True)
class Match:
    """What is made equal. measured: of the statistics. falls: whether it falls as τ rises. start: its closed form."""

    measured: Callable[[Statistics], float]
    falls: bool
    start: Callable[[float, int, int], float]


def entropy_temperature(sigma: float, train_length: int, test_length: int) -> float:
    """τ of equal entropy, where logits are independent draws from N(0, σ²).

    1/τ² = 1 + 2 log(L_test / L_train) / σ², from Ent ≈ log L − σ² / (2τ²). Raises InputError for impossible values.
    """
    _check(sigma, train_length, test_length)
    return (1 + 2 * math.log(test_length / train_length) / sigma**2) ** -0.5


def max_prob_temperature(sigma: float, train_length: int, test_length: int) -> float:
    """τ of equal maximum probability, where logits are independent draws from N(0, σ²).

    log Pmax ≈ g(σ/τ, L) = (σ/τ) √(2 log L) − log L − (σ/τ)²/2, so that with a = √(2 log L_test)

        τ = σ / u      u = a − √(a² − 2 (log L_test + g(σ, L_train)))

    The formula stands on both sides, since it is too large by a factor that cancels. It holds for σ well below
    √(2 log L_train), where the largest logit outweighs the others together: InputError from there on.
    """
    _check(sigma, train_length, test_length)
    if sigma >= math.sqrt(2 * math.log(train_length)):
        limit = math.sqrt(2 * math.log(train_length))
        raise InputError(f"sigma must be below {limit:.3g} at {train_length} tokens, got {sigma:.3g}")
    reached = sigma * math.sqrt(2 * math.log(train_length)) - math.log(train_length) - sigma**2 / 2
    a = math.sqrt(2 * math.log(test_length))
    return sigma / (a - math.sqrt(a**2 - 2 * (math.log(test_length) + reached)))


def _check(sigma: float, train_length: int, test_length: int) -> None:
    if sigma <= 0 or not 2 <= train_length <= test_length:
        raise InputError(
            "sigma must be above 0 and the lengths at least 2, the trained one first, "
            f"got sigma={sigma}, {train_length=} and {test_length=}"
        )


MATCHES = {
    "max_prob": Match(lambda found: found.max_prob, falls=True, start=max_prob_temperature),
    "entropy": Match(lambda found: found.entropy, falls=False, start=entropy_temperature),
}
"""What can be matched, by name."""


def fit_temperature(
    model: nn.Module,
    texts: Texts,
    train_length: int,
    test_length: int,
    match: str = "max_prob",
    *,
    where: Sequence[str] = ("encoder",),
) -> float:
    """τ with which attention at `test_length` is as sharp as it was at `train_length`: 1e-3 near, between 0.3 and 1.

    model: an Encoder, an EncoderDecoder, whose encoder alone is read, a LanguageModel, or any module of theirs that
    takes tokens. texts: token sequences of `test_length` or more, unlabelled; each is cut to either length, and padded
    where it is shorter. Or a function from a length to such sequences. A handful suffices; each of about ten passes
    reads them all. match: "max_prob", or "entropy". where: the attention that is measured and divided, of "encoder",
    "decoder" and "cross"; a LanguageModel has "decoder" alone.

    1 where attention hasn't become flatter, 0.3 where nothing above it is sharp enough. Raises InputError for another
    match, and where the model has no such attention.
    """
    if match not in MATCHES:
        raise unknown("match", match, MATCHES)
    chosen = MATCHES[match]
    trained = statistics(model, texts, train_length, where)
    sigma = math.sqrt(trained.variance)
    try:
        start = chosen.start(sigma, train_length, test_length)
    except InputError:
        start = entropy_temperature(max(sigma, 1e-3), train_length, test_length)  # which holds at any sigma

    def flatter(tau: float) -> bool:
        with attention_temperature(model, tau, where=where):
            found = chosen.measured(statistics(model, texts, test_length, where))
        return (found < chosen.measured(trained)) == chosen.falls

    return bisect(flatter, start)


def bisect(flatter: Callable[[float], bool], start: float, low: float = LOWEST, high: float = 1.0) -> float:
    """The temperature above which attention is too flat, 1e-3 near: `flatter` tells of one whether it is.

    Begins at `start`, and looks further and further away from it until it has the temperature between two.
    """
    ends, step = (low, high), 0.01
    probe = min(max(start, low + TOLERANCE), high - TOLERANCE)
    met = [False, False]
    while high - low > TOLERANCE:
        above = flatter(probe)
        low, high, met[above] = (low, probe, True) if above else (probe, high, True)
        near = probe - step if above else probe + step
        probe, step = near if not all(met) and low < near < high else (low + high) / 2, 2 * step
    if not met[True]:
        return ends[1]
    return (low + high) / 2 if met[False] else ends[0]


@torch.no_grad()
def statistics(model: nn.Module, texts: Texts, length: int, where: Sequence[str] = ("encoder",)) -> Statistics:
    """The means over layers, heads and queries that aren't padding, of texts cut to a length."""
    layers = attention_layers(model, where)
    reader = model.encoder if isinstance(model, EncoderDecoder) else model
    given = texts(length) if callable(texts) else texts
    rows = [text[:length] for text in given]
    if not rows or not all(len(row) for row in rows):
        raise InputError("texts must hold at least one sequence, and none that is empty")
    with observed(layers) as found:
        for begin in range(0, len(rows), max(1, TOKENS // length)):
            some = rows[begin : begin + max(1, TOKENS // length)]
            tokens = nn.utils.rnn.pad_sequence(some, batch_first=True)
            counts = [len(row) for row in some]
            layout = None if len(set(counts)) == 1 else Layout.padded(counts, "right", tokens.device)
            reader(tokens, None, layout)
    if not found.queries:
        raise InputError(f"the model reads texts without its attention of {', '.join(where)}")
    return found.mean()


def attention_layers(model: nn.Module, where: Sequence[str] = ("encoder",)) -> list[Attention]:
    """The softmax attention of these kinds in a model. Raises InputError for unknown kinds and where there is none."""
    for kind in where:
        if kind not in WHERE:
            raise unknown("kind of attention", kind, WHERE)
    found = [m for m in model.modules() if type(m) in (Attention, CrossAttention) and kind_of(m) in where]
    if not found:
        has = {kind_of(m) for m in model.modules() if type(m) in (Attention, CrossAttention)}
        known = f"it has {', '.join(sorted(has))}" if has else "it has none"
        raise InputError(f"the model has no softmax attention of {', '.join(where)}; {known}")
    return found  # type: ignore[return-value]


def kind_of(layer: nn.Module) -> str:
    """Which of `WHERE` a layer is."""
    if isinstance(layer, CrossAttention):
        return "cross"
    return "decoder" if layer.causal else "encoder"


@contextmanager
def attention_temperature(model: nn.Module, tau: float, *, where: Sequence[str] = ("encoder",)) -> Iterator[None]:
    """Within it, logits of the attention of these kinds are divided by `tau`, instead of what else they are divided by.

    where: of "encoder", the only one that the paper divides, "decoder" and "cross".
    """
    layers, temperature = attention_layers(model, where), Constant(tau)
    before = [layer.temperature for layer in layers]
    try:
        for layer in layers:
            layer.temperature = temperature
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer.temperature = was


@torch.no_grad()
def fold_temperature(model: nn.Module, tau: float, *, where: Sequence[str] = ("encoder",)) -> None:
    """Divide the weights that logits are made of by `tau`: W_q, its bias and the table of `t5`, once each.

    What `attention_temperature` gives, at no cost. Raises InputError for other positions that add to the logits.
    """
    factor = Constant(tau).factor(torch.empty(1, 0), training=False)
    layers = attention_layers(model, where)
    weights = [weight for layer in layers for weight in layer.q_proj.parameters()]
    for layer in layers:
        if layer.position is not None and layer.position.has("bias"):
            if not isinstance(layer.position, T5):
                raise InputError(f"the biases of {type(layer.position).__name__} aren't weights that could be divided")
            weights.append(layer.position.weight)
    for weight in dict.fromkeys(weights):
        weight.mul_(factor)
