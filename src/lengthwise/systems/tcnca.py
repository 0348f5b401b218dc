"""TCNCA: convolutions of a finite reach in place of Mega's moving average, at a cost in proportion to the length."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from lengthwise.measure import interleaved
from lengthwise.mixers.moving_average import DampedEMA
from lengthwise.mixers.tcn import TCN
from lengthwise.models.language_model import LanguageModel
from lengthwise.ops.long_convolution import long_convolution
from lengthwise.systems.experiments import OnStep, bits_per_byte, progress, train_bytes, validation_windows
from lengthwise.systems.system import Figure, Run, System, at_least, at_most, of_seeds, reported
from lengthwise.tasks.recall import DistantRecall
from lengthwise.training.fit import fit

SYSTEM = System(
    key="tcnca",
    title="TCNCA: Temporal Convolution Network with Chunked Attention for Scalable Sequence Processing",
    arxiv="2312.05605",
    parts=["mixers.tcnca", "mixers.tcn", "mixers.mega", "ops.dilated_convolution", "ops.chunk_attention"],
    claim="a few dilated convolutions of large reach replace Mega's moving average, as good and faster at any length",
    expression="12*(tcnca + mlp)",
)

LENGTHS = (4096, 16384, 65536)
CHANNELS, STATES = 64, 8
KERNEL, LEVELS = 9, 4

TASK = DistantRecall()
DIM, RECALL_BATCH, RECALL_STEPS = 64, 32, 1500
RECALL = {
    "TCNCA, simplified": "2*(chain(tcn(kernel=5, levels=3) + chunked_attention(heads=1, chunk=16)) + mlp(hidden=128))",
    "Mega in chunks": "2*(mega(states=8, chunk=16) + mlp(hidden=128))",
    "attention in chunks": "2*(chunked_attention(heads=1, chunk=16) + mlp(hidden=128))",
}
"""What recalls: without gates behind convolutions, Mega, and attention alone."""

BYTES_DIM, BYTES_LENGTH, BYTES_BATCH, BYTES_STEPS = 96, 512, 4, 500
SIZES = "chunk=64, z_dim=48, value_dim=192"
BYTES = {
    "TCNCA": f"3*(tcnca(kernel=9, levels=3, {SIZES}) + mlp(hidden=256))",
    "Mega in chunks": f"3*(mega(states=8, {SIZES}) + mlp(hidden=256))",
}
"""The models of text."""


@SYSTEM.experiment
def reproduce(run: Run) -> Iterator[Figure]:
    """Time against length; recall of a pair that lies in another chunk; bits per byte of text.

    Time: four layers of nine taps, dilated by powers of nine, over 64 channels, against Mega's average by Fourier
    transforms, its kernel made in each call. Recall: 4 pairs, 40 tokens of noise and a query, in chunks of 16; two
    layers of width 64, 1500 batches of 32, AdamW with a learning rate of 4e-3, loss at the value asked for, since each
    key is shown once and the values shown can't be known: with a loss at those as well all three models stay at chance.
    The simplified block has no gates. Text: three layers of 96, 500 batches of 4 windows of 512 bytes, in chunks of 64,
    the convolutions reaching back 729 bytes.
    """
    run.progress("time against the length", 0.0)
    yield from cost_law()
    seeds = of_seeds(run.seeds)
    tell = progress(run, len(run.seeds) * (len(RECALL) * RECALL_STEPS + len(BYTES) * BYTES_STEPS))
    found = medians(RECALL, run.seeds, tell, accuracy)
    ours, mega, alone = found.values()
    note = f"{ours:.3f} and {mega:.3f}, guessing: {TASK.chance:g}"
    yield at_least(f"accuracy of recall above Mega's ({seeds})", ours - mega, -0.05, claimed="on par", note=note)
    note = f"attention in chunks alone: {alone:.3f}"
    yield at_least(f"accuracy above that of attention in chunks alone ({seeds})", ours - alone, 0.2, note=note)
    bits = medians(BYTES, run.seeds, tell, text_bits)
    note = f"{bits['TCNCA']:.3f} and {bits['Mega in chunks']:.3f}"
    ratio = bits["TCNCA"] / bits["Mega in chunks"]
    yield at_most(
        f"bits per byte over those of Mega in chunks ({seeds})", ratio, 1.03, claimed="1.01 and 1.02", note=note
    )


def medians(
    variants: Mapping[str, str],
    seeds: tuple[int, ...],
    tell: Callable[[str], OnStep],
    measure: Callable[[str, int, OnStep], float],
) -> dict[str, float]:
    """For each name the median over the seeds of what is measured of its layers."""
    return {
        name: statistics.median(measure(layers, seed, tell(f"{name}, seed {seed}")) for seed in seeds)
        for name, layers in variants.items()
    }


def train(layers: str, seed: int, on_step: OnStep | None = None, steps: int = RECALL_STEPS) -> LanguageModel:
    """A model of the recall task, trained."""
    torch.manual_seed(seed)
    model = LanguageModel(TASK.vocab_size, DIM, layers, position="rope", norm="layernorm")
    batches, warmup = TASK.batches(RECALL_BATCH, seed=seed), min(100, steps)
    settings = {"learning_rate": 4e-3, "warmup": warmup, "final": 0.0}
    fit(model, batches, steps=steps, loss=TASK.objective, on_step=on_step, **settings)  # type: ignore[arg-type]
    return model.eval()


def accuracy(layers: str, seed: int, on_step: OnStep | None = None) -> float:
    """Share of 512 fresh sequences answered right after training."""
    return TASK.score(train(layers, seed, on_step), examples=512)


def text_bits(layers: str, seed: int, on_step: OnStep | None = None, steps: int = BYTES_STEPS) -> float:
    """Bits per byte of 128 KiB of files that no batch holds, after training."""
    model = train_bytes(
        layers,
        "none",
        seed=seed,
        dim=BYTES_DIM,
        length=BYTES_LENGTH,
        batch=BYTES_BATCH,
        steps=steps,
        on_step=on_step,
        std=None,
    )
    return bits_per_byte(model, validation_windows(BYTES_LENGTH, 2**17 // BYTES_LENGTH, BYTES_LENGTH))


def cost_law(lengths: tuple[int, ...] = LENGTHS) -> Iterator[Figure]:
    """How time grows with the length, and the time of Fourier transforms over that of the convolutions."""
    short, long = min(lengths), max(lengths)
    for kind, gradient in (("forward", False), ("forward and backward", True)):
        times = seconds(lengths, gradient)
        yield at_most(
            f"time of the convolutions {kind} at {long} tokens over that at {short}",
            times["convolutions", long] / times["convolutions", short],
            20,
            claimed="linear",
            note=f"{long // short} would be linear",
        )
        claimed = "up to 2.86" if gradient else "up to 7.07"
        ratio = times["transforms", long] / times["convolutions", long]
        yield at_least(
            f"time of Fourier transforms {kind} over that of the convolutions at {long}", ratio, 1.2, claimed
        )
        recurrence = times["recurrence", long] / times["convolutions", long]
        yield reported(
            f"time of the average as a recurrence {kind} over that of the convolutions at {long}", recurrence
        )
    transforms = 10 * math.log2(2 * long) + STATES
    name = "multiplications of an element by transforms over those by convolutions"
    yield reported(name, transforms / (KERNEL * LEVELS))


def seconds(lengths: tuple[int, ...], gradient: bool) -> dict[tuple[str, int], float]:
    """Median seconds of the convolutions, of the average by Fourier transforms, and of its recurrence."""
    torch.manual_seed(0)
    convolutions, average = TCN(CHANNELS, kernel=KERNEL, levels=LEVELS), DampedEMA(CHANNELS, states=STATES)
    forms: dict[str, tuple[Callable[[Tensor], Tensor], nn.Module]] = {
        "convolutions": (lambda x: convolutions(x)[0], convolutions),
        "recurrence": (lambda x: average(x)[0], average),
        "transforms": (partial(by_transforms, average), average),
    }
    x = torch.randn(1, max(lengths), CHANNELS)
    calls = {(name, n): partial(_once, *form, x[:, :n], gradient) for name, form in forms.items() for n in lengths}
    times = interleaved({str(key): call for key, call in calls.items()}, repeats=7)
    return {key: times[str(key)] for key in calls}


def by_transforms(average: DampedEMA, x: Tensor) -> Tensor:
    """The average as a convolution with a kernel as long as the input, made anew."""
    return long_convolution(x, average.taps(x.shape[1])) + average.omega * x


def _once(form: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor, gradient: bool) -> None:
    with torch.set_grad_enabled(gradient):
        y = form(x)
        if gradient:
            torch.autograd.grad(y.sum(), list(module.parameters()))
