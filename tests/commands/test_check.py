"""`lengthwise check`: finding what is meant, the table, the exit code."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console
from torch import nn

from lengthwise.commands.check import find, run_check
from lengthwise.errors import InputError, unknown
from lengthwise.models import EncoderDecoder, load
from tests.laws import mixers


def build(expression, dim):
    if expression != "average":
        raise unknown("part", expression, ["average"])
    return mixers.MovingAverage(dim)


def run(target, laws=("causal", "resumable", "receptive_field"), **keywords):
    out = io.StringIO()
    code = run_check(target, build=build, laws=laws, console=Console(file=out, width=100), **keywords)
    return code, out.getvalue()


def test_an_expression_that_holds_gives_0_and_a_line_a_law():
    code, out = run("average")
    assert code == 0
    lines = [line.split()[:2] for line in out.splitlines()]
    assert ["causal", "holds"] in lines
    assert ["resumable", "holds"] in lines
    assert "receptive_field (none declared)" in out


def test_a_module_by_import_path_that_breaks_a_law_gives_1_and_the_smallest_case():
    code, out = run("tests.laws.mixers:ForgetsForManyTokens")
    assert code == 1
    assert "smallest case: batch 1, length 3, cut at 1" in " ".join(out.split())
    assert "off by" in out


def test_excuses_are_shown_with_their_reason(monkeypatch):
    monkeypatch.setattr(mixers.ForgetsTheState, "breaks", {"resumable": "it is a toy"})
    code, out = run("tests.laws.mixers:ForgetsTheState")
    assert code == 0
    assert "excused" in out
    assert "it is a toy" in out


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("averge", "average"),
        ("tests.laws.mixers:MovingAverages", "MovingAverage"),
        ("no_such_package:Thing", "no_such_package"),
        ("some/where", "no folder"),
        ("tests.laws.mixers:__doc__", "neither"),
        ("transformers:Llama", "LlamaForCausalLM"),
    ],
)
def test_bad_targets_are_input_errors(target, says):
    with pytest.raises(InputError, match=says):
        run(target)


def test_unknown_laws_are_input_errors():
    with pytest.raises(InputError, match="did you mean causal"):
        run("average", laws=["casual"])


class NeedsMore(nn.Module):
    def __init__(self, dim, depth):
        super().__init__()


class Fails(nn.Module):
    def forward(self, x, state=None):
        raise IndexError("no such place")


def test_modules_that_can_not_be_made_or_run_are_input_errors():
    with pytest.raises(InputError, match="depth"):
        run("tests.commands.test_check:NeedsMore")
    with pytest.raises(InputError, match="IndexError: no such place"):
        run("tests.commands.test_check:Fails")


def test_a_saved_model_that_answers_a_source_is_checked_with_one(tmp_path):
    EncoderDecoder(11, 8, "attention", "attention + cross_attention").save(tmp_path)
    code, out = run(str(tmp_path), load=load, laws=("causal", "resumable"))
    assert code == 0, out


def test_folders(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json"):
        find(str(tmp_path), build)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="JSON"):
        find(str(tmp_path), build)
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 3}))
    made = mixers.MovingAverage(4)
    assert find(str(tmp_path), build, load=lambda folder: made) is made
    with pytest.raises(InputError, match="transformers"):
        find(str(tmp_path), build)
