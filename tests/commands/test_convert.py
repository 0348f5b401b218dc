"""The verb convert, in this process."""

import json

import pytest
import torch

from lengthwise.cli import main
from lengthwise.conversion import load
from lengthwise.models import LanguageModel


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    LanguageModel(40, 16, "2*mamba", position="none").save(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    return tmp_path / "model"


def test_there_and_back_is_the_same_model_with_its_tokenizer(checkpoint, tmp_path, capsys):
    there, back = tmp_path / "there", tmp_path / "back"
    assert main(["convert", str(checkpoint), str(there)]) == 0
    assert "as transformers reads it" in capsys.readouterr().out
    assert json.loads((there / "config.json").read_text())["model_type"] == "mamba"
    assert main(["convert", str(there), str(back)]) == 0
    assert "as lengthwise reads it" in capsys.readouterr().out
    assert (back / "tokenizer.json").read_text() == "{}"
    for name, tensor in load(checkpoint).state_dict().items():
        assert torch.equal(load(back).state_dict()[name], tensor)


def test_a_model_is_never_written_over(checkpoint, tmp_path, capsys):
    before = (checkpoint / "config.json").read_text()
    assert main(["convert", str(checkpoint), str(checkpoint)]) == 2
    assert "holds a model already" in capsys.readouterr().err
    assert (checkpoint / "config.json").read_text() == before


def test_what_transformers_lacks_is_refused_and_nothing_is_written(tmp_path, capsys):
    LanguageModel(40, 16, "min_gru + mlp").save(tmp_path / "model")
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "out")]) == 2
    assert "transformers has no LanguageModel made of min_gru + mlp" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
