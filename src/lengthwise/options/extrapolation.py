"""What `lengthwise extrapolate` can be told. Imports no torch, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class ExtrapolateOptions:
    """Measure models far beyond the length that they were trained at: bits per byte against context and position, and
    recall against distance, for each position encoding and each way to stretch it.

    Without DATA the source text of Python's standard library is used. Small models of bytes are trained, one for each
    position encoding, or models that are trained already are taken with --checkpoints.

    Examples:
      lengthwise extrapolate
      lengthwise extrapolate my_texts/ --positions rope alibi "rope(base=500000)" --length 128 --times 1 2 4 8
      lengthwise extrapolate notes.txt --positions rope --scalings none ntk --seconds 60 --seeds 0 1 2
      lengthwise extrapolate my_texts/ --checkpoints runs/a runs/b --length 512
      lengthwise extrapolate --resume
    """

    data: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[DATA...]")] = ()
    """Files, folders or globs, read as bytes. Without any: the source text of Python's standard library."""

    positions: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME...")] = (
        "rope",
        "alibi",
        "t5",
        "fire",
        "cable",
        "sinusoidal",
        "none",
    )
    """Position encodings to train a model with, as expressions: rope, alibi, learned, "rope(base=500000)"."""

    scalings: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME...")] = ("interpolation", "ntk", "temperature")
    """Ways to stretch a trained model: interpolation, ntk, temperature, or none. Each is measured on the models that it
    is for, beside the model as it was trained."""

    checkpoints: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FOLDER...")] = ()
    """Trained language models of bytes to measure instead: checkpoints, or runs of lengthwise train."""

    length: int | None = None
    """Tokens of context in training. 64 without; of checkpoints, what they were trained with."""

    times: tuple[int, ...] = (1, 2, 4, 8, 16)
    """The contexts to measure, as multiples of the trained length."""

    layers: Annotated[str, tyro.conf.arg(metavar="EXPR")] = "4*(attention(heads=4) + mlp)"
    """The layers of the models that are trained."""

    dim: int = 64
    """Width of the models that are trained."""

    steps: int | None = None
    """Training steps of each model; 450 where --seconds isn't given either."""

    seconds: float | None = None
    """Training time of each model, instead of steps."""

    batch: int = 16
    """Rows of a training batch."""

    learning_rate: float = 2e-3
    """Peak learning rate of AdamW, the same for every model: linear warm-up, then cosine to a tenth."""

    keys: float = 0.5
    """Share of the rows in training that hide a key byte and ask for it later, from which recall is learned. With 0
    models are trained on the text alone, and recall is that of a copied passage."""

    windows: int = 48
    """Stretches of held-out text that every model is measured on; fewer where the data is short."""

    seeds: Annotated[tuple[int, ...], tyro.conf.arg(aliases=["--seed"])] = (0,)
    """Seeds to train with. With several the report gives medians; each model is then trained once a seed."""

    output: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder for report.html, report.json and results.jsonl. Without it: extrapolate/DATE-TIME."""

    resume: bool = False
    """Go on with the run in --output, or with the latest under extrapolate/: what is finished is kept."""
