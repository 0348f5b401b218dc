"""SpikeGPT: an RWKV-4 whose blocks add nothing but spikes, as good a model of text as RWKV-4 within bounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from lengthwise.channels.spiking import IntegrateAndFire, Spikes
from lengthwise.models.language_model import LanguageModel
from lengthwise.models.stack import Residual
from lengthwise.planning.energy import Operations, count_operations, joules
from lengthwise.systems import rwkv_model
from lengthwise.systems.experiments import OnStep, bits_per_byte, corpus, progress, validation_windows
from lengthwise.systems.system import Figure, Run, System, at_least, at_most, of_seeds, reported

SYSTEM = System(
    key="spikegpt",
    title="SpikeGPT: Generative Pre-trained Language Model with Spiking Neural Networks",
    arxiv="2302.13939",
    parts=[
        "channels.integrate_and_fire",
        "channels.spikes",
        "mixers.rwkv",
        "channels.rwkv_channels",
        "ops.integrate_and_fire",
        "planning.energy",
    ],
    claim="a language model can add nothing but spikes to its residual stream, few of them, and stay close to one of"
    " real numbers",
    expression="spikes + layernorm + 12*(chain(rwkv + integrate_and_fire) + chain(rwkv_channels + integrate_and_fire))",
)

DIM, LENGTH, BATCH, STEPS = 128, 128, 8, 1000
MODELS = {
    "SpikeGPT": "spikes + layernorm + 3*(chain(rwkv + integrate_and_fire) + chain(rwkv_channels + integrate_and_fire))",
    "RWKV-4": rwkv_model.layers(3),
}
BLOCKS = tuple(f"layer {layer}, {half} mix" for layer in (1, 2, 3) for half in ("time", "channel"))
"""The blocks of SpikeGPT, each with its neurons, in order."""


@dataclass(frozen=True)
class Measured:
    """What is measured of one seed.

    bits: bits per byte of SpikeGPT, of RWKV-4, and of SpikeGPT with shuffled spikes. embedded: the share of ones in the
    binary embedding. rates: that of each block's neurons. other: the share of their outputs that is neither 0 nor 1.
    operations: those of SpikeGPT and of RWKV-4 for one window.
    """

    bits: tuple[float, float, float]
    embedded: float
    rates: tuple[float, ...]
    other: float
    operations: tuple[Operations, Operations]


@SYSTEM.experiment
def reproduce(run: Run) -> Iterator[Figure]:
    """A byte model of three layers that adds spikes, and RWKV-4, the same without neurons and with a real embedding.

    Both are trained on the same 1000 batches of 8 windows of 128 bytes, by Adam from 2e-3 to 2e-4. Bits per byte are
    those of 128 KiB of files that no batch holds. The control shuffles the spikes of every block over the tokens of a
    window. Energy counts the matrix products alone: those that read the residual stream are taken to be driven by the
    spikes that were added to it last, as the paper does, although a norm lies between; the others multiply. Batches
    were to hold 16 windows, and hold half of that for the time it takes.
    """
    tell = progress(run, len(run.seeds) * len(MODELS) * STEPS)
    found = []
    for seed in run.seeds:
        models = {name: train(name, seed, tell(f"{name}, seed {seed}")) for name in MODELS}
        found.append(measure(*models.values()))
    over = of_seeds(run.seeds)
    yield from firing(found, over)
    yield from quality(found, over)
    yield from costs(found, over)


def firing(found: Sequence[Measured], over: str) -> Iterator[Figure]:
    """What the neurons give, and how often they fire."""
    yield at_most("share of the neurons' outputs that are neither 0 nor 1", max(m.other for m in found), 0)
    rate = statistics.median(statistics.fmean(m.rates) for m in found)
    yield at_least(f"mean firing rate ({over})", rate, 0.005, note="silent neurons carry nothing")
    yield at_most(f"mean firing rate ({over})", rate, 0.35, note=f"share of zeros: {1 - rate:.3f}")
    for number, block in enumerate(BLOCKS):
        yield reported(f"firing rate of {block}", statistics.median(m.rates[number] for m in found))
    yield reported("share of zeros in the binary embedding", statistics.median(1 - m.embedded for m in found))


def quality(found: Sequence[Measured], over: str) -> Iterator[Figure]:
    """Bits per byte against those of RWKV-4, of single bytes, and of shuffled spikes."""
    ours, theirs, shuffled = map(statistics.median, zip(*(m.bits for m in found), strict=True))
    yield at_most(
        f"bits per byte over those of RWKV-4 ({over})",
        statistics.median(m.bits[0] / m.bits[1] for m in found),
        1.25,
        claimed="1.28 bits on enwik8, where Transformers have 1.0 to 1.1",
        note=f"{ours:.3f} and {theirs:.3f}",
    )
    unigram = entropy(held_out())
    note = f"entropy: {unigram:.3f}"
    yield at_most(f"bits per byte over the entropy of single bytes ({over})", ours / unigram, 0.8, note=note)
    lost = statistics.median(m.bits[2] - m.bits[0] for m in found)
    yield at_least(f"bits per byte that shuffled spikes cost ({over})", lost, 0.2, note=f"shuffled: {shuffled:.3f}")


def costs(found: Sequence[Measured], over: str) -> Iterator[Figure]:
    """The additions that spikes trigger, and the energy of the matrix products."""
    triggered = statistics.median(m.operations[0].triggered for m in found)
    yield at_most(f"additions triggered over products that spikes drive ({over})", triggered, 0.35)
    ours, theirs = (statistics.median(joules(m.operations[i]) for m in found) / LENGTH for i in range(2))
    yield reported(
        f"energy of the matrix products over that of RWKV-4's ({over})",
        ours / theirs,
        claimed="1/20 of the operations",
        note=f"{1e6 * ours:.2f} and {1e6 * theirs:.2f} µJ a token",
    )


def train(name: str, seed: int, on_step: OnStep | None = None, steps: int | None = None) -> LanguageModel:
    """One of `MODELS`."""
    torch.manual_seed(seed)
    model = rwkv_model.build(MODELS[name], DIM)
    batches = corpus()[0].batches(LENGTH, BATCH, seed)
    rwkv_model.train(model, batches, steps=steps or STEPS, last_rate=2e-4, on_step=on_step)
    return model.eval()


def held_out() -> Int[Tensor, "windows n"]:
    """128 KiB of files that no batch holds."""
    return validation_windows(LENGTH, 2**17 // LENGTH, LENGTH)


def measure(ours: LanguageModel, theirs: LanguageModel) -> Measured:
    """What is measured of two trained models."""
    outputs: dict[nn.Module, list[Tensor]] = {module: [] for module in spiking(ours)}
    with hooked(ours, lambda module, _, out: outputs[module].append(out[0])):
        bits = bits_per_byte(ours, held_out())
    spikes = [torch.cat(parts) for parts in outputs.values()]
    embedded, *rates = (float((s == 1).float().mean()) for s in spikes)
    other = max(float(((s != 0) & (s != 1)).float().mean()) for s in spikes)
    generator = torch.Generator().manual_seed(0)
    with hooked(ours, lambda module, _, out: shuffle(module, out, generator)):
        shuffled = bits_per_byte(ours, held_out())
    window = held_out()[:1, :-1]
    operations = count_operations(ours, window, rates=driven(ours, embedded, rates)), count_operations(theirs, window)
    return Measured((bits, bits_per_byte(theirs, held_out()), shuffled), embedded, tuple(rates), other, operations)


def spiking(model: LanguageModel) -> list[nn.Module]:
    """The parts whose outputs are spikes, in order: the embedding's, then each block's neurons."""
    return [module for module in model.modules() if isinstance(module, Spikes | IntegrateAndFire)]


@contextmanager
def hooked(model: LanguageModel, hook: Callable[[nn.Module, Any, Any], Any]) -> Iterator[None]:
    """Calls `hook` with every spiking part, its inputs and its outputs, which become what it returns, unless None."""
    handles = [module.register_forward_hook(hook) for module in spiking(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def shuffle(module: nn.Module, output: tuple[Tensor, Any], generator: torch.Generator) -> tuple[Tensor, Any] | None:
    """The spikes of a block in another order of the tokens, drawn for each row; the embedding's as they are."""
    if isinstance(module, Spikes):
        return None
    spikes, state = output
    order = torch.rand(spikes.shape[:2], generator=generator).argsort(1)
    return spikes.gather(1, order[..., None].expand_as(spikes)), state


def driven(model: LanguageModel, embedded: float, rates: list[float]) -> dict[str, float]:
    """For each map that reads the residual stream, by name, the rate of the spikes that were added to it last."""
    found: dict[str, float] = {}
    rate = embedded
    blocks = [(f"stack.layers.{n}", layer) for n, layer in enumerate(model.stack.layers) if isinstance(layer, Residual)]
    for (name, block), after in zip(blocks, rates, strict=True):
        mixer = block.part.layers[0]  # type: ignore[index, union-attr]
        readers = ("key", "receptance", "value") if hasattr(mixer, "time_mix_value") else ("key", "receptance")
        found |= {f"{name}.part.layers.0.{reader}": rate for reader in readers}
        rate = after
    return found | {"head": rate}


def entropy(tokens: Int[Tensor, "*shape"]) -> float:
    """− Σ p log₂ p over the bytes of a text, p their frequencies in it."""
    shares = torch.bincount(tokens.flatten(), minlength=256).double() / tokens.numel()
    return float(-(shares * shares.clamp_min(1e-300).log2()).sum())
