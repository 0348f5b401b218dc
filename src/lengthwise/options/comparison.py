"""What `lengthwise compare` can be told. Imports no torch, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class CompareOptions:
    """Train candidate models on your own data under one equal budget, measure them against length, and write a report
    that says which to pick.

    Without DATA the source text of Python's standard library is used, and without --layers or --systems six candidates:
    softmax attention, sliding-window attention, linear attention, DeltaNet, Mamba and a hybrid.

    Examples:
      lengthwise compare
      lengthwise compare my_texts/ --budget 10m --length 1024 --parameters 2M
      lengthwise compare notes.txt --layers "4*(attention + swiglu)" --layers "mine: 8*mamba" --seeds 0 1 2
      lengthwise compare 'data/*.jsonl' --tokenizer tokenizer.json --equal tokens
      lengthwise compare --resume
    """

    data: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[DATA...]")] = ()
    """Files, folders or globs, read as bytes. Without any: the source text of Python's standard library."""

    layers: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="EXPR")] = ()
    """A candidate as an expression, with a name before a colon if you like: --layers "hybrid: 2*(mamba + attention)".
    Give it once for each candidate."""

    systems: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY...")] = ()
    """Candidates by the keys of published systems, as `lengthwise systems` lists them."""

    tokenizer: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A Hugging Face tokenizer.json to read the data with, instead of as bytes."""

    budget: Annotated[str, tyro.conf.arg(metavar="TIME")] = "3m"
    """Training time of all candidates together, shared equally: 90s, 5m, 2h. Measuring comes on top."""

    equal: Literal["seconds", "tokens"] = "seconds"
    """What the candidates share equally: seconds of training, or tokens (as many as fit in the budget)."""

    measuring: Annotated[str, tyro.conf.arg(metavar="TIME")] = "110s"
    """Time for all measurements together. What doesn't fit is left out, and the report says so."""

    parameters: Annotated[str, tyro.conf.arg(metavar="COUNT")] = "650k"
    """Parameters of each candidate: 650k, 3M. Widths are solved so that candidates agree within 5 %."""

    length: int = 512
    """Tokens of context in training."""

    batch: int = 4
    """Rows of a training batch."""

    learning_rate: float = 2e-3
    """Peak learning rate of AdamW, the same for every candidate: linear warm-up, then cosine to a tenth."""

    position: Annotated[str, tyro.conf.arg(metavar="NAME")] = "rope"
    """Position encoding of the softmax attention layers: rope, alibi, none, learned(length=4096)."""

    seeds: tuple[int, ...] = (0,)
    """Seeds to train with. With several the report gives medians; each candidate is then trained once a seed."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of training and of scoring: float32, or bfloat16 autocast."""

    decode_lengths: tuple[int, ...] = (1024, 4096, 16384, 65536)
    """Contexts at which a decoded token is timed and the state is weighed."""

    memory: Annotated[str, tyro.conf.arg(metavar="SIZE")] = "4GB"
    """No measurement is tried that is expected to need more than this."""

    output: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder for report.html and results.jsonl. Without it: compare/DATE-TIME."""

    resume: bool = False
    """Go on with the run in --output, or with the latest under compare/: what is finished is kept."""
