"""Models of transformers with random weights, their files, and ours that are read from these."""

import json
from pathlib import Path

import pytest
import torch

import lengthwise as lw
from lengthwise.conversion.families import FAMILIES
from lengthwise.models.saving import load_weights
from tests.stirred import stir


def made(model, config, strength, **settings):
    """A model of transformers by the names of its classes, its weights moved away from where they start."""
    transformers = pytest.importorskip("transformers", minversion="5.0")
    torch.manual_seed(0)
    return stir(getattr(transformers, model)(getattr(transformers, config)(**settings)).eval(), strength)


def pairs(theirs_of, kinds):
    """A fixture: their model of each kind, ours with the same weights, and the folder of the files of both."""

    @pytest.fixture(scope="module", params=kinds)
    def pair(request, tmp_path_factory):
        theirs, folder = theirs_of(request.param), tmp_path_factory.mktemp("theirs")
        theirs.save_pretrained(folder)
        return theirs, lw.load(folder).eval(), folder

    return pair


def take(ours, theirs):
    """Our model, with the weights of theirs."""
    family = FAMILIES[theirs.config.model_type]
    load_weights(ours, family.read(ours, theirs.state_dict()), Path("theirs"))
    return ours.eval()


def mamba_states(theirs, tokens):
    """What each layer keeps after these tokens: its state, and the last 3 inputs of its convolution."""
    layers = theirs(tokens, use_cache=True).cache_params.layers
    # Theirs keeps one column more than the next token can see.
    return [(only(x.recurrent_states), only(x.conv_states)[..., -3:].transpose(1, 2)) for x in layers]


def only(value):
    """Some versions keep one tensor for each of several states in a layer."""
    if isinstance(value, dict):
        return next(iter(value.values()))
    return value[0] if isinstance(value, list | tuple) else value


def change(folder, **values):
    """Write other values into a folder's configuration; None takes one out."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in {**config, **values}.items() if v is not None}))
