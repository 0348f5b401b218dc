"""What `lengthwise lengths` can be told. Imports no torch, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class LengthsOptions:
    """Find the length to train at: one model for each length, all under one equal budget on your own data, and the
    shortest length that is as good as the best.

    Without DATA the source text of Python's standard library is used, and without --layers a Transformer and Mamba.

    Examples:
      lengthwise lengths
      lengthwise lengths my_texts/ --lengths 64 256 1024 --layers "4*(attention + swiglu)" --tokens 4M
      lengthwise lengths src/ --pairs code --layers "mine: 6*mamba" "wide: 2*(attention + swiglu)" --seeds 0 1 2
      lengthwise lengths notes.txt --seconds 60s --mode windows --update-windows 8
      lengthwise lengths --resume
    """

    data: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[DATA...]")] = ()
    """Files, folders or globs, read as bytes. Without any: the source text of Python's standard library."""

    lengths: tuple[int, ...] = (32, 128, 512)
    """Tokens of a training window, at least 16. Each model is trained once at every length."""

    layers: Annotated[tuple[str, ...], tyro.conf.arg(metavar="EXPR...")] = ()
    """Models as expressions, with a name before a colon if you like: "mine: 2*(mamba + attention)"."""

    tokenizer: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A Hugging Face tokenizer.json to read the data with, instead of as bytes."""

    tokens: Annotated[str | None, tyro.conf.arg(metavar="COUNT")] = None
    """Tokens that each model is trained on at each length: 1M, 20M. 500k where --seconds isn't given either: a first
    look, for which the two default models take about four minutes on two cores."""

    seconds: Annotated[str | None, tyro.conf.arg(metavar="TIME")] = None
    """Training time of each model at each length, instead of a number of tokens: 60s, 5m."""

    mode: Literal["tokens", "windows"] = "tokens"
    """What an update has equally many of at every length: tokens, so that lengths alone differ, or windows, so that
    short ones have more updates of fewer tokens."""

    update_tokens: int = 2048
    """Tokens of an update where updates have equally many; a multiple of every length."""

    update_windows: int = 8
    """Windows of an update where updates have equally many."""

    pairs: Literal["letters", "code", "none"] = "letters"
    """Minimal pairs that measure what is local: two neighbouring letters (or tokens) of any text swapped, or a wrong
    bracket or keyword in source text."""

    tolerance: float = 0.02
    """A length counts as good where it is at most so much worse than the best: in bits per byte, and in the share of
    minimal pairs."""

    parameters: Annotated[str, tyro.conf.arg(metavar="COUNT")] = "650k"
    """Parameters of each model: 650k, 3M. Widths are solved so that models agree within 5 %."""

    learning_rate: float = 2e-3
    """Peak learning rate of AdamW, the same at every length: linear warm-up, then cosine to a tenth."""

    position: Annotated[str, tyro.conf.arg(metavar="NAME")] = "rope"
    """Position encoding of the softmax attention layers: rope, alibi, none, learned(length=4096)."""

    seeds: tuple[int, ...] = (0,)
    """Seeds to train with. With several the report gives medians."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of training and of scoring: float32, or bfloat16 autocast."""

    json: bool = False
    """Print the table and the recommendation as JSON."""

    output: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder for report.html and results.jsonl. Without it: lengths/DATE-TIME."""

    resume: bool = False
    """Go on with the run in --output, or with the latest under lengths/: what is finished is kept."""
