"""What `lengthwise train`, `generate` and `evaluate` can be told. No torch here: `--help` must be quick."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from lengthwise.errors import InputError, unknown

Precision = Literal["auto", "float32", "bfloat16"]

Packing = Literal["none", "cut", "arrival", "greedy"]


@dataclass(frozen=True)
class TrainOptions:
    """Train a language model on your own data, with checkpoints from which a killed run goes on bit for bit.

    Examples:
      lengthwise train --layers "4*(mamba + swiglu)" --data texts/ --out runs/mamba
      lengthwise train settings.yaml --steps 5000
      lengthwise train --layers "4*mamba" --data letters/ --packing greedy --length 2048 --out runs/letters
      lengthwise train --out runs/mamba --resume
      torchrun --nproc-per-node 2 -m lengthwise train settings.yaml
    """

    config: Annotated[Path | None, tyro.conf.Positional] = None
    """A YAML file with any of the settings below by name; what is given on the command line goes before it."""

    out: Path = Path("runs/train")
    """The folder of the run: checkpoints, metrics.jsonl, tensorboard."""

    resume: bool = False
    """Go on from the last checkpoint in the folder of the run, with the settings it began with."""

    data: tuple[Path, ...] = ()
    """Files, folders or globs to train on. A part of the files is held out for validation."""

    tokenizer: Path | None = None
    """A Hugging Face tokenizer.json. Without it, data are bytes."""

    layers: str = ""
    """The model as an expression, for example "4*(attention + swiglu)"."""

    dim: int = 256
    """Width of the model."""

    position: str = "rope"
    """How order enters: none, learned, sinusoidal, rope, alibi, t5, with arguments where wanted."""

    norm: str = "rmsnorm"
    """Normalisation of each residual branch."""

    tie: bool = False
    """Use the embedding as the output layer as well."""

    length: int = 512
    """Tokens that the model reads in one row of a batch."""

    batch: int = 16
    """Rows of one optimiser step, over all processes and accumulated parts together."""

    accumulate: int = 1
    """Parts that each process divides its rows into, one after the other, to save memory."""

    steps: int = 1000
    """Optimiser steps."""

    learning_rate: float = 1e-3
    """Peak learning rate of AdamW, reached after the warm-up."""

    warmup: int = 100
    """Steps over which the learning rate rises from zero."""

    final: float = 0.1
    """The share of the peak learning rate that the cosine ends at."""

    weight_decay: float = 0.1
    """Decay of matrices. Vectors (norms, biases) have none."""

    beta1: float = 0.9
    """AdamW's decay of the mean of gradients."""

    beta2: float = 0.95
    """AdamW's decay of the mean of squared gradients."""

    clip: float = 1.0
    """The norm that gradients are clipped to."""

    carry_state: bool = False
    """Each row of the batch is one long stream and the state goes on from step to step (truncated back-propagation)."""

    packing: Packing = "none"
    """Files as documents that don't see each other, several in one row: cut fills every row and cuts the file that
    reaches over its end; arrival and greedy keep files whole where a row has room for one, as they come or the longest
    that fits next, and pad what is left; none reads windows that may cross from one file into the next."""

    precision: Precision = "auto"
    """Arithmetic of matrix products; auto is bfloat16 where the processor has it, else float32."""

    device: str = "auto"
    """auto is the graphics card where there is one, else cpu."""

    seed: int = 0
    """Of the initial parameters and of the order of the data."""

    validate_every: int = 100
    """Steps between two validations; 0 for none."""

    validation_windows: int = 32
    """Contexts of held-out data that one validation reads."""

    checkpoint_every: int = 100
    """Steps between two checkpoints. The last and the best are kept."""


@dataclass(frozen=True)
class GenerateOptions:
    """Continue a text with a trained model, as it is chosen, token by token.

    Examples:
      lengthwise generate runs/mamba --prompt "def main("
      cat chapter.txt | lengthwise generate runs/mamba --temperature 0.8 --top-p 0.95
      lengthwise generate runs/mamba --prompt-file book.txt --save-state book.state
      lengthwise generate runs/mamba --load-state book.state --max-tokens 500
      lengthwise generate SmolLM2-135M-Instruct.Q4_1.gguf --prompt "The sun is"
    """

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """The folder of a checkpoint or of a run (its best checkpoint, else its last), or a GGUF file."""

    prompt: str | None = None
    """The text to continue."""

    prompt_file: Path | None = None
    """A file with the text to continue; - is standard input, which is also read when there is nothing else."""

    max_tokens: int = 200
    """Tokens to generate."""

    temperature: float = 1.0
    """Below 1 more certain, above 1 more varied; 0 always takes the likeliest token."""

    top_k: int | None = None
    """Choose among the k likeliest tokens only."""

    top_p: float | None = None
    """Choose among the likeliest tokens that together have this probability."""

    seed: int | None = None
    """Of the choices; the same seed gives the same text."""

    save_state: Path | None = None
    """Where to write the state after the last token, to go on later without reading the text again."""

    load_state: Path | None = None
    """Go on from a state written before, with the prompt, if any, after it."""

    tokenizer: Path | None = None
    """A Hugging Face tokenizer.json; by default the one in the checkpoint."""

    device: str = "auto"
    """auto is the graphics card where there is one, else cpu."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Bits per byte of a trained model on data, overall and by position in the context.

    Examples:
      lengthwise evaluate runs/mamba texts/
      lengthwise evaluate runs/mamba book.txt --length 65536 --json
    """

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """The folder of a checkpoint or of a run (its best checkpoint, else its last)."""

    data: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Files, folders or globs."""

    length: int | None = None
    """Tokens of one context; by default what the model was trained with. It may be longer."""

    held_out: bool = False
    """Read only the part of the data that train holds out for validation."""

    max_tokens: int = 1_000_000
    """Tokens to read at most, in contexts spread evenly over the data."""

    batch: int = 8
    """Contexts read at once."""

    json: bool = False
    """Print the result as JSON."""

    tokenizer: Path | None = None
    """A Hugging Face tokenizer.json; by default the one in the checkpoint."""

    precision: Precision = "auto"
    """Arithmetic of matrix products; auto is bfloat16 where the processor has it, else float32."""

    device: str = "auto"
    """auto is the graphics card where there is one, else cpu."""


Options = TypeVar("Options")


def read_config(path: Path, kind: type[Options], default: Options | None = None) -> Options:
    """The options in a YAML file over `default`. Raises InputError for a name or value that doesn't fit."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"the configuration {str(path)!r} can't be read ({error.strerror or error})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{str(path)!r} is not a YAML file: {' '.join(str(error).split())}") from None
    if content is None:
        content = {}
    if not isinstance(content, Mapping):
        raise InputError(f"{str(path)!r} must hold settings as 'name: value' lines, got {type(content).__name__}")
    return from_mapping({str(k).replace("-", "_"): v for k, v in content.items()}, kind, default, str(path))


def from_mapping(content: Mapping[str, Any], kind: type[Options], default: Options | None, source: str) -> Options:
    """Options from names and plain values, over `default`. `source` is named in errors."""
    types = typing.get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind) if f.name != "config"]  # type: ignore[arg-type]
    values = {}
    for name, value in content.items():
        if name not in known:
            raise unknown(f"setting in {source}", name, known)
        values[name] = _convert(value, types[name], f"{name} in {source}")
    return dataclasses.replace(default, **values) if default is not None else kind(**values)  # type: ignore[type-var]


def _convert(value: Any, wanted: Any, name: str) -> Any:
    """`value`, as YAML or JSON gives it, in the type that a field wants."""
    choices = typing.get_args(wanted)
    if typing.get_origin(wanted) is tuple:
        return tuple(_convert(item, choices[0], name) for item in (value if isinstance(value, list) else [value]))
    if typing.get_origin(wanted) is Literal:
        if value not in choices:
            raise unknown(f"value of {name}", str(value), [str(c) for c in choices])
        return value
    if type(None) in choices:
        return None if value is None else _convert(value, choices[0], name)
    if wanted is bool and isinstance(value, bool):
        return value
    if wanted is not bool and not isinstance(value, (bool, list, dict, type(None))):
        try:
            number = wanted(value)
        except (TypeError, ValueError):
            pass
        else:
            if wanted is not int or float(value) == number:
                return number
    raise InputError(f"{name} must be {getattr(wanted, '__name__', wanted)}, got {value!r}")


def to_mapping(options: Any) -> dict[str, Any]:
    """Options as names and plain values, for YAML and JSON. The path of the configuration itself is left out."""
    plain = {}
    for name, value in dataclasses.asdict(options).items():
        if name == "config":
            continue
        if isinstance(value, Path):
            value = str(value)
        plain[name] = [str(v) for v in value] if isinstance(value, tuple) else value
    return plain
