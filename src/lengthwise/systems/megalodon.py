"""Megalodon: what a moving average carries from chunk to chunk makes up for attention that sees no further."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lengthwise.contract import Layout, SequenceModule, StateTree
from lengthwise.mixers.megalodon import Megalodon
from lengthwise.models.language_model import LanguageModel
from lengthwise.systems.experiments import OnStep, corpus, nll_by_position, parameters, progress, validation_windows
from lengthwise.systems.system import Figure, Run, System, at_least, at_most, of_seeds, reported
from lengthwise.training.fit import fit

SYSTEM = System(
    key="megalodon",
    title="Megalodon: Efficient LLM Pretraining and Inference with Unlimited Context Length",
    arxiv="2404.08801",
    parts=["mixers.megalodon", "mixers.complex_ema", "channels.timestep_norm", "ops.chunk_attention", "ops.ema"],
    claim="with a complex moving average in front, attention in chunks is as good as attention to everything, at any"
    " length and with a state that doesn't grow",
    expression="24*two_hop(megalodon + chain(layernorm + swiglu)) + timestep_norm",
)

DIM, LENGTH, LONG, BATCH, STEPS = 96, 512, 4096, 4, 800
WINDOWS = 64
"""Held-out texts that are read."""


class WithoutAverage(Megalodon):
    """The same block without the moving average: m = RMSNorm(n)."""

    def averaged(
        self,
        n: Float[Tensor, "batch length dim"],
        state: StateTree,  # noqa: ARG002
        layout: Layout | None,  # noqa: ARG002
    ) -> tuple[Float[Tensor, "batch length dim"], StateTree]:
        """n as it is."""
        return n, None


PARTS: dict[str, type[SequenceModule]] = {"without_average": WithoutAverage}

BLOCK = "(chunk=64, z_dim=48, value_dim=192, states=8, groups=12) + chain(layernorm + swiglu(hidden=256))"
LAYERS = {
    "megalodon": f"3*two_hop(megalodon{BLOCK}) + timestep_norm(groups=12)",
    "chunks": "3*(chunked_attention(heads=1, chunk=64) + swiglu(hidden=376))",
    "full": "3*(attention(heads=1) + swiglu(hidden=376))",
}
"""What is compared: Megalodon, and Transformers of its size whose attention sees a chunk, and everything."""

ABLATIONS = {
    "without the moving average": f"3*two_hop(without_average{BLOCK}) + timestep_norm(groups=12)",
    "without the two-hop residual": f"3*(megalodon{BLOCK}) + timestep_norm(groups=12)",
}


@SYSTEM.experiment
def reproduce(run: Run) -> Iterator[Figure]:
    """Three byte models of three layers of 96 and equal size, trained on 512 bytes and read over 4096.

    800 batches of 4 windows, half of what was planned, with the first two of the seeds, to end within minutes. AdamW
    with a learning rate of 2e-3 after a warm-up of 50 steps, then a cosine to a tenth. Chunks have 64 bytes. Early are
    the first 512 bytes of 64 held-out texts of 4096, late the last 512.
    """
    seeds = run.seeds[:2]
    step = progress(run, (len(seeds) * len(LAYERS) + len(ABLATIONS)) * STEPS)
    models: dict[str, LanguageModel] = {}
    found: list[dict[str, tuple[float, float]]] = []
    for seed in seeds:
        models = {name: train(layers, seed, step(f"{name}, seed {seed}")) for name, layers in LAYERS.items()}
        found.append({name: early_and_late(model) for name, model in models.items()})
    yield from compared(found, of_seeds(seeds, "mean"))
    sizes = {name: parameters(model) for name, model in models.items()}
    apart = max(abs(sizes[name] / sizes["megalodon"] - 1) for name in sizes)
    yield at_most("difference of the numbers of parameters", apart, 0.1, note=str(sizes["megalodon"]))
    yield from states(models)
    for name, layers in ABLATIONS.items():
        early, _ = early_and_late(train(layers, seeds[0], step(name)))
        ours = found[0]["megalodon"][0]
        yield reported(f"early bits per byte {name} (seed {seeds[0]})", early, note=f"with: {ours:.3f}")


def compared(found: list[dict[str, tuple[float, float]]], seeds: str) -> Iterator[Figure]:
    """Megalodon against both Transformers, early and late."""
    early = {name: statistics.mean(one[name][0] for one in found) for name in LAYERS}
    later = {name: statistics.mean(one[name][1] / one[name][0] for one in found) for name in LAYERS}
    yield at_least(
        f"early bits per byte of attention in chunks, above Megalodon's ({seeds})",
        early["chunks"] - early["megalodon"],
        0.03,
        note=f"{early['chunks']:.3f} and {early['megalodon']:.3f}",
    )
    yield at_most(
        f"early bits per byte of Megalodon over those of full attention ({seeds})",
        early["megalodon"] / early["full"],
        1.03,
        claimed="training loss 1.70 and 1.75 of Llama 2",
        note=f"full attention: {early['full']:.3f}",
    )
    yield at_most(
        f"late over early bits per byte of Megalodon ({seeds})",
        later["megalodon"],
        1.02,
        claimed="falls up to 2M tokens",
        note=f"attention in chunks, which sees as much everywhere: {later['chunks']:.3f}",
    )
    yield at_least(
        f"late over early of full attention, above Megalodon's ({seeds})",
        later["full"] - later["megalodon"],
        0,
        note=f"full attention: {later['full']:.3f}",
    )


def train(layers: str, seed: int, on_step: OnStep | None = None, steps: int | None = None) -> LanguageModel:
    """A byte model of these layers, built, trained and left in evaluation mode."""
    torch.manual_seed(seed)
    model = LanguageModel(256, DIM, layers, position="rope", parts=PARTS)
    if layers not in (LAYERS["chunks"], LAYERS["full"]):
        initialise(model)
    batches = corpus()[0].batches(LENGTH, BATCH, seed)
    fit(model, batches, steps=steps or STEPS, learning_rate=2e-3, warmup=50, on_step=on_step)
    return model.eval()


def initialise(model: nn.Module) -> None:
    """Draw every linear map as the paper does: normal, with a variance of 1 / (3 inputs). The embedding's N(0, 1) is
    the paper's N(0, 1 / dim), scaled by √dim as one of its settings has it."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, a=math.sqrt(5))


def early_and_late(model: LanguageModel) -> tuple[float, float]:
    """Bits per byte over the first and over the last `LENGTH` bytes of long texts."""
    nll = nll_by_position(model, LONG, windows=WINDOWS, longest=LONG) / math.log(2)
    return float(nll[:LENGTH].mean()), float(nll[-LENGTH:].mean())


@torch.no_grad()
def states(models: Mapping[str, LanguageModel]) -> Iterator[Figure]:
    """The largest state on the way to both lengths, which is that before the last token."""
    text = validation_windows(LONG, 1, LONG)
    nbytes = {name: [model(text[:, : n - 1])[1].nbytes for n in (LENGTH, LONG)] for name, model in models.items()}
    growth = {name: long / short for name, (short, long) in nbytes.items()}
    yield at_most(
        f"largest state within {LONG} tokens over that within {LENGTH}",
        growth["megalodon"],
        1.0,
        claimed="constant",
        note=f"{nbytes['megalodon'][1]} bytes",
    )
    yield reported("the same of full attention", growth["full"], note=f"{nbytes['full'][1]} bytes")
