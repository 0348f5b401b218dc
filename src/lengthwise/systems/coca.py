"""CoCA: keys collinear with the query don't score higher one token away than at the query itself."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lengthwise.mixers.attention import Attention
from lengthwise.models.language_model import LanguageModel
from lengthwise.positions.stretch import stretched
from lengthwise.systems.experiments import nll, of_each, rise, train_each, validation_windows
from lengthwise.systems.system import Figure, Run, System, at_least, at_most, reported

SYSTEM = System(
    key="coca",
    title="Cure the headache of Transformers via Collinear Constrained Attention",
    arxiv="2309.08646",
    parts=["mixers.coca_attention", "positions.rope", "positions.stretch"],
    claim="with keys collinear to the query, scores fall from distance 0 on, and perplexity rises less beyond the"
    " trained length than with rotary positions",
    expression="24*(coca_attention + swiglu)",
)

STEPS, TRAINED, LONGEST = 450, 64, 512
LAYERS = {
    "collinear": "4*(coca_attention(heads=4) + mlp)",
    "rotary": "4*(attention(heads=4, position=rope) + mlp)",
}
"""Both with equally many parameters."""


@SYSTEM.experiment
def reproduce(run: Run) -> Iterator[Figure]:
    """The byte language model of `lengthwise.systems.experiments` with collinear and with rotary attention, at length
    64, one of each for every seed.

    The anomaly is counted on 48 validation windows of 64 bytes, in every layer, head and plane; the rise is that of the
    mean loss from contexts of 64 to contexts of 512 bytes. The last lines change the base of the trained models' angles
    for contexts of 512, as for a context of f · 512 − (f − 1) · 64.
    """
    kinds = {name: {"layers": layers} for name, layers in LAYERS.items()}
    yield from compared(of_each(train_each(run, kinds, run.seeds, STEPS), measures), len(run.seeds))


def compared(found: dict[str, dict[str, float]], seeds: int) -> Iterator[Figure]:
    """The figures, of the mean of each measure."""
    ours, plain = found["collinear"], found["rotary"]
    of = f"mean of {seeds} seeds" if seeds > 1 else "one seed"
    name = "share of planes in which a key scores higher at distance 1 than at 0"
    yield at_most(f"{name}, collinear", ours["anomaly"], 0, claimed="none")
    yield at_least(f"{name}, rotary", plain["anomaly"], 0.2, claimed="near half")
    yield at_most(
        f"rise of the loss from context 64 to 512, collinear over rotary ({of})",
        ours["rise"] / plain["rise"],
        0.95,
        claimed="perplexity stays low up to 16 times the trained length",
        note=f"{ours['rise']:.3f} and {plain['rise']:.3f}",
    )
    for measure in ours:
        if measure not in ("anomaly", "rise"):
            for variant in LAYERS:
                yield reported(f"nats per byte {measure}, {variant} ({of})", found[variant][measure])


def measures(model: LanguageModel) -> dict[str, float]:
    """What is measured of a trained model."""
    found = {"anomaly": anomaly(model), "rise": rise(model, LONGEST, TRAINED)}
    for length in (64, 128, 256, 512):
        found[f"at context {length}"] = nll(model, length)
    for factor in (2, 4):
        reached = factor * LONGEST - (factor - 1) * TRAINED
        with stretched(model, "ntk", trained=TRAINED, length=reached):
            found[f"at context {LONGEST} with its base changed, factor {factor}"] = nll(model, LONGEST)
    return found


@torch.no_grad()
def anomaly(model: LanguageModel) -> float:
    """How often the contribution of a plane to a token's score with itself is raised by moving the key one token away:
    the share of all tokens, layers, heads and planes."""
    seen: list[tuple[Attention, Tensor]] = []
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    hooks = [layer.register_forward_hook(lambda layer, args, _: seen.append((layer, args[0]))) for layer in layers]
    try:
        model(validation_windows(TRAINED)[:, :-1])
    finally:
        for hook in hooks:
            hook.remove()
    raised = torch.cat([raises(layer, x).flatten() for layer, x in seen])
    return float(raised.double().mean())


def raises(layer: Attention, x: Tensor) -> Tensor:
    """Whether each plane scores higher at distance 1 than at 0, [batch, length, heads, planes].

    In float64, in which the cosine of the smallest angle of a step differs from 1.
    """
    q, k, _ = (y.double() for y in layer.project(x))
    assert layer.position is not None
    here = torch.ones(x.shape[1], dtype=torch.long)
    at_zero, at_one = (planes(*layer.position.rotate(q, k, here, keys)) for keys in (here, here - 1))
    return at_one > at_zero


def planes(q: Tensor, k: Tensor) -> Tensor:
    """What each plane, channels j and j + D/2, adds to q · k."""
    return (q * k).unflatten(-1, (2, -1)).sum(-2)
