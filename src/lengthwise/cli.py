"""The command line: one function per verb. What is slow to import is imported when a verb runs."""

from __future__ import annotations

import errno
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro

from lengthwise.errors import InputError
from lengthwise.options.comparison import CompareOptions
from lengthwise.options.extrapolation import ExtrapolateOptions
from lengthwise.options.lengths import LengthsOptions
from lengthwise.options.training import EvaluateOptions, GenerateOptions, TrainOptions, read_config

Names = Annotated[tuple[str, ...], tyro.conf.Positional]


def check(
    target: Annotated[str, tyro.conf.Positional], /, dim: int = 32, seed: int = 0, laws: tuple[str, ...] = ()
) -> int:
    """Hold a mixer to the laws: an expression, a class of your own, or a model of transformers.

    Exits with 1 where a law is broken, and prints the smallest case that shows it.

    Examples:
      lengthwise check "deltanet(heads=2)"
      lengthwise check "attention(window=16) + swiglu"
      lengthwise check my_package.my_module:MyMixer
      lengthwise check transformers:FalconMambaForCausalLM
      lengthwise check path/to/a/transformers/model

    Args:
        target: EXPRESSION, MODULE:CLASS, transformers:CLASS, or a folder with a model, ours or one of transformers.
        dim: Width of the part that is built.
        seed: Of the weights and inputs.
        laws: Only these laws.
    """
    from lengthwise.commands.check import run_check
    from lengthwise.conversion import load
    from lengthwise.models import build

    return run_check(target, build=build, load=load, dim=dim, laws=laws or None, seed=seed)


def systems(working: bool = False, find: str = "") -> int | None:
    """List the published systems, with their papers, and which work.

    Examples:
      lengthwise systems
      lengthwise systems --working
      lengthwise systems --find attention

    Args:
        working: Only those that work.
        find: Only those whose key or title holds this.
    """
    from lengthwise.systems.runner import list_systems

    return list_systems(working=working, find=find)


def show(key: Annotated[str, tyro.conf.Positional], /) -> int | None:
    """Explain a system: what it claims, what it is made of, how to use it, and what was measured.

    Examples:
      lengthwise show mamba

    Args:
        key: The system's key, as `lengthwise systems` lists it.
    """
    from lengthwise.systems.runner import show

    return show(key)


def reproduce(
    keys: Names,
    /,
    seeds: tuple[int, ...] = (0, 1, 2),
    json: bool = False,
    output: Path = Path("results"),
    resume: bool = False,
) -> int | None:
    """Run the experiments that show the claims of systems: claimed, measured, threshold, holds or does not hold.

    Exits with 1 where a claim doesn't hold.

    Examples:
      lengthwise reproduce min-rnn
      lengthwise reproduce mamba deltanet --seeds 0 1 2 --json
      lengthwise reproduce all

    Args:
        keys: Keys of systems, or all.
        seeds: Seeds to run with; the median is reported.
        json: Print the results as JSON.
        output: Folder for the results, one JSON file per system.
        resume: Leave out the systems whose results are in the folder already.
    """
    from lengthwise.systems.runner import reproduce

    return reproduce(keys, seeds=seeds, json=json, output=output, resume=resume)


def bench(ops: Names = (), /, json: bool = False) -> int | None:
    """Time the fast ops against their references, named peers and the machine's limits, in one run.

    Examples:
      lengthwise bench
      lengthwise bench selective_scan delta_rule
      lengthwise bench --json

    Args:
        ops: Names of benchmarks; all without any.
        json: Print the rows as JSON.
    """
    from lengthwise.commands.bench import bench

    return bench(ops, json=json)


def convert(
    source: Annotated[Path, tyro.conf.Positional], destination: Annotated[Path, tyro.conf.Positional], /
) -> int | None:
    """Write a model of transformers as one of lengthwise, or one of lengthwise as transformers reads it.

    Mamba, Mamba-2, Falcon Mamba, RWKV-4, Longformer, LED, T5, Llama, Mistral and Qwen2 in safetensors; Llama and Qwen2
    in GGUF too. The other verbs read all forms as they are.

    Examples:
      lengthwise convert mamba-130m-hf runs/mamba
      lengthwise convert SmolLM2-135M-Instruct.Q4_1.gguf runs/smollm2
      lengthwise convert runs/mine/last mine-hf

    Args:
        source: A folder with a model, in either form, a run of lengthwise train, or a GGUF file.
        destination: A new folder for the other form.
    """
    from lengthwise.commands.convert import convert

    return convert(source, destination)


def with_options(place: str, kind: type, default: Any = None) -> Callable[..., int | None]:
    """A verb that takes one dataclass of options, as the function that the parser sees. `place` is MODULE:FUNCTION."""

    def run(options: Any) -> int | None:
        module, _, name = place.partition(":")
        return getattr(importlib.import_module(module), name)(options)

    run.__defaults__ = None if default is None else (default,)
    run.__doc__ = kind.__doc__
    run.__annotations__ = {"options": Annotated[kind, tyro.conf.arg(name="")], "return": "int | None"}
    return run


TRAIN = "lengthwise.commands.train:train"

VERBS: dict[str, Callable[..., int | None]] = {
    "compare": with_options("lengthwise.commands.compare:compare", CompareOptions),
    "extrapolate": with_options("lengthwise.commands.extrapolate:extrapolate", ExtrapolateOptions),
    "lengths": with_options("lengthwise.commands.lengths:lengths", LengthsOptions),
    "train": with_options(TRAIN, TrainOptions),
    "generate": with_options("lengthwise.commands.generate:generate", GenerateOptions),
    "evaluate": with_options("lengthwise.commands.train:evaluate", EvaluateOptions),
    "convert": convert,
    "check": check,
    "systems": systems,
    "show": show,
    "reproduce": reproduce,
    "bench": bench,
}


def examples(verb: str) -> str:
    """The examples in a verb's docstring, which the parser leaves out of its help."""
    _, _, rest = inspect.cleandoc(VERBS[verb].__doc__ or "").partition("Examples:\n")
    return rest.partition("\n\n")[0]


def verbs_for(arguments: list[str]) -> dict[str, Callable[..., int | None]]:
    """The verbs, with the settings of the YAML file that `train` was given as its defaults."""
    if arguments[:1] != ["train"]:
        return VERBS
    file = next((a for a in arguments[1:] if a.endswith((".yaml", ".yml"))), None)
    if file is None:
        return VERBS
    return {**VERBS, "train": with_options(TRAIN, TrainOptions, read_config(Path(file), TrainOptions))}


def say(message: str) -> None:
    """One message to the user, on standard error."""
    print(f"lengthwise: {message}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Run a verb. 0: done; 1: something measured doesn't hold; 2: bad input; 130: stopped by Ctrl-C."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        code = tyro.extras.subcommand_cli_from_dict(
            verbs_for(given),
            prog="lengthwise",
            description="Sequence models that have to be long: choose, train and use them, measured on the same work.",
            args=given,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
        )
        return code or 0
    except SystemExit as stop:
        if not stop.code and given[0] in VERBS:
            print(f"\nexamples:\n{examples(given[0])}")
        raise
    except InputError as error:
        say(str(error))
        return 2
    except OSError as error:
        if error.errno == errno.EPIPE:
            sys.stderr.close()
            return 0
        say(f"{error.filename or 'a file'}: {error.strerror or error}")
        return 2
    except KeyboardInterrupt:
        say("stopped; what was finished is kept")
        return 130


if __name__ == "__main__":
    sys.exit(main())
