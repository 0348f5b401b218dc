"""Small runs that the tests of training share."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import tyro

from lengthwise.commands.generate import generate
from lengthwise.commands.train import evaluate, train
from lengthwise.errors import InputError
from lengthwise.models import LanguageModel
from lengthwise.options.training import EvaluateOptions, GenerateOptions, TrainOptions
from lengthwise.tasks.corpus import Corpus, Document
from lengthwise.training.distributed import World
from lengthwise.training.loop import Trainer

LAYERS = "attention(window=4) + swiglu"
WORLD = World(torch.device("cpu"))


def corpus(sizes=(300, 200), vocab_size=16):
    """Documents that count upwards with jumps: something to learn, nothing to wait for."""
    rng = np.random.default_rng(0)
    documents = [
        Document(f"{n}", (np.arange(s) + rng.integers(0, 2, s)).astype(np.uint8) % vocab_size)
        for n, s in enumerate(sizes)
    ]
    return Corpus(tuple(documents), vocab_size)


def options(out, **changes):
    """Settings of a run of a few steps."""
    small = {
        "dim": 16, "layers": LAYERS, "length": 8, "batch": 4, "steps": 6, "warmup": 2, "learning_rate": 1e-2,
        "validate_every": 2, "validation_windows": 4, "checkpoint_every": 2, "precision": "float32", "device": "cpu",
    }  # fmt: skip
    return TrainOptions(out=Path(out), data=(Path("unused"),), **{**small, **changes})


def trainer(out, model=None, train=None, **changes):
    """A trainer of a tiny language model on the corpus."""
    settings, data = options(out, **changes), train or corpus()
    if model is None:
        torch.manual_seed(settings.seed)
        model = LanguageModel(data.vocab_size, settings.dim, settings.layers, settings.position)
    Path(out).mkdir(parents=True, exist_ok=True)
    description = {"model": "LanguageModel", "config": model.config}
    return Trainer(model, description, data, corpus((120,)), settings, WORLD)


def metrics(run):
    """What a run measured, without the time it took."""
    lines = (Path(run) / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def python(program, *arguments, **environment):
    """A program in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=Path(__file__).parents[2],  # from where the tests can be imported
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def verb(name, *arguments):
    """A verb of the command line in this process: what it returns, 2 with a message for bad input."""
    kind, run = {
        "train": (TrainOptions, train),
        "evaluate": (EvaluateOptions, evaluate),
        "generate": (GenerateOptions, generate),
    }[name]
    # the command line's own parser isn't used here, for the annotations that it reads are wrapped in the tests
    options = tyro.cli(kind, args=list(arguments), config=(tyro.conf.FlagCreatePairsOff,))
    try:
        return run(options)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
