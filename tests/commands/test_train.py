"""The verbs train and evaluate from the command line, in this process."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from lengthwise import load
from lengthwise.training import loop
from tests.training.runs import LAYERS, metrics, verb

TEXT = b"the quick brown fox jumps over the lazy dog. " * 60

SMALL = [
    "--layers", LAYERS, "--dim", "16", "--length", "16", "--batch", "4", "--steps", "4", "--warmup", "1",
    "--validate-every", "2", "--validation-windows", "4", "--checkpoint-every", "2", "--device", "cpu",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_bytes(TEXT)
    return tmp_path


@pytest.fixture
def texts(folder):
    """Files of which some fit into a row of 16 bytes and some don't, one of a single byte."""
    (folder / "texts").mkdir()
    for n in range(24):
        (folder / "texts" / f"{n:02}.txt").write_bytes(TEXT[n : n + 1 + n * n // 3])
    return folder


def train(*arguments):
    return verb("train", "--data", "text.txt", *SMALL, *arguments)


def test_train_evaluate_and_load(folder, capsys):
    assert train("--out", "run") == 0
    assert (folder / "run" / "settings.yaml").exists()
    model = load(folder / "run" / "last")
    assert model.config["layers"] == LAYERS
    capsys.readouterr()
    assert verb("evaluate", "run", "text.txt", "--json", "--device", "cpu") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["length"] == 16  # what it was trained with
    assert result["windows"] == (len(TEXT) - 1) // 16
    assert 5 < result["bits_per_byte"] < 9
    assert result["standard_error"] > 0
    assert verb("evaluate", "run", "text.txt", "--held-out", "--length", "100", "--max-tokens", "200") == 0
    assert verb("evaluate", "run", "text.txt", "--length", "0") == 2
    shown = capsys.readouterr().out
    assert "2 contexts of 100 tokens" in shown
    assert "64 to 99" in shown


def test_settings_from_a_file_and_the_command_line_over_them(folder):
    (folder / "s.yaml").write_text(f"data: text.txt\nlayers: {LAYERS}\ndim: 16\nlength: 16\nsteps: 900\nbatch: 2\n")
    command = [sys.executable, "-m", "lengthwise", "train", "s.yaml", "--steps", "2", "--batch", "16", "--out", "run"]
    assert subprocess.run(command, check=False).returncode == 0
    assert "batch: 16" in (folder / "run" / "settings.yaml").read_text()  # what is given wins even if it is the default
    assert metrics(folder / "run")[-1]["step"] == 2
    assert load(folder / "run" / "last").config["dim"] == 16


@pytest.mark.parametrize("kind", [(), ("--packing", "greedy")], ids=["windows", "packed"])
def test_stopped_by_ctrl_c_and_resumed_with_nothing_but_the_folder(kind, texts, monkeypatch, capsys):
    folder, honest = texts, loop.Trainer.step

    def step(self, rows):
        if self.progress.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return honest(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "step", step)
        assert verb("train", "--data", "texts", *SMALL, *kind, "--out", "parts") == 130
    assert "stopped after step 3; go on with: lengthwise train --out parts --resume" in capsys.readouterr().err
    monkeypatch.chdir(folder / "parts")  # the data are found from any folder
    assert verb("train", "--out", ".", "--resume") == 0
    monkeypatch.chdir(folder)
    assert verb("train", "--data", "texts", *SMALL, *kind, "--out", "whole") == 0
    kept = [[r for r in metrics(run) if r["kind"] == "train"] for run in ("parts", "whole")]
    assert kept[0] == kept[1]
    assert len(kept[0]) == 4


def test_a_run_killed_before_its_first_checkpoint_begins_anew_with_its_settings(folder, monkeypatch):
    def step(self, rows):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "step", step)
        with pytest.raises(MemoryError):
            train("--out", "run")
    assert verb("train", "--out", "run", "--resume") == 0
    assert train("--out", "whole") == 0
    assert metrics("run") == metrics("whole")


def test_documents_are_packed_and_states_carried(texts):
    for kind in (["--packing", "cut"], ["--packing", "arrival"], ["--packing", "greedy"], ["--carry-state"]):
        assert verb("train", "--data", "texts", *SMALL, *kind, "--out", kind[-1].strip("-")) == 0
    sizes = {
        kind: (texts / kind / "last" / "state-0.safetensors").stat().st_size
        for kind in ("carry-state", "cut", "arrival", "greedy")
    }
    assert sizes["carry-state"] > sizes["cut"] == sizes["arrival"] == sizes["greedy"]
    losses = {kind: [r["loss"] for r in metrics(kind) if r["kind"] == "train"] for kind in sizes}
    assert losses["arrival"] != losses["greedy"] != losses["cut"]


def test_a_packed_run_does_not_go_on_with_another_packing(texts, capsys):
    assert verb("train", "--data", "texts", *SMALL, "--packing", "greedy", "--out", "run") == 0
    assert verb("train", "--out", "run", "--resume", "--packing", "arrival") == 2
    assert "began with packing greedy and can't go on with arrival" in capsys.readouterr().err
    assert verb("train", "--out", "run", "--resume") == 0


def test_packing_and_carrying_exclude_each_other(texts, capsys):
    assert verb("train", "--data", "texts", *SMALL, "--packing", "greedy", "--carry-state") == 2
    assert "choose one of them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--layers", LAYERS, "--data", "none.txt"], "none.txt"),
        (["train", "--layers", LAYERS, "--data", "empty.txt"], "empty"),
        (["train", "--layers", LAYERS, "--data", "hollow"], "hollow"),
        (["train", "--layers", LAYERS, "--data", "text.txt", "--length", "5000"], "smaller length"),
        (["train", "--layers", "2*(min_grru)", "--data", "text.txt", "--length", "16"], "did you mean min_gru"),
        (["train", "--data", "text.txt"], "--layers"),
        (["train", "--layers", LAYERS], "--data"),
        (["train", "--data", "text.txt", *SMALL, "--batch", "3", "--accumulate", "2"], "multiple of 2"),
        (["train", "--layers", LAYERS, "--data", "text.txt", "--device", "tpu9"], "tpu9"),
        (["train", "--out", "nowhere", "--resume"], "no run to resume"),
        (["evaluate", "nowhere", "text.txt"], "nowhere"),
        (["evaluate", "hollow", "text.txt"], "holds no checkpoint"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_no_run(arguments, message, folder, capsys):
    (folder / "empty.txt").write_bytes(b"")
    (folder / "hollow").mkdir()
    assert verb(*arguments) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "runs").exists()


def test_a_folder_with_a_run_is_not_overwritten_nor_resumed_as_another(folder, capsys):
    assert train("--out", "run") == 0
    before = metrics("run")
    assert train("--out", "run") == 2
    assert "add --resume" in capsys.readouterr().err
    assert train("--out", "run", "--resume", "--dim", "32") == 2
    assert "began with dim 16 and can't go on with 32" in capsys.readouterr().err
    (folder / "text.txt").write_bytes(TEXT + b"more than there was")
    assert verb("train", "--out", "run", "--resume") == 2
    assert "the data now has" in capsys.readouterr().err
    assert metrics("run") == before


def test_a_loss_that_becomes_nan_exits_with_2_and_keeps_the_checkpoint(folder, monkeypatch, capsys):
    honest = loop.Trainer.step

    def step(self, rows):
        if self.progress.step == 3:
            with torch.no_grad():
                self.model.embedding.weight.fill_(torch.nan)
        return honest(self, rows)

    monkeypatch.setattr(loop.Trainer, "step", step)
    assert train("--out", "run") == 2
    message = capsys.readouterr().err
    assert "nan at step 4, in the parameter embedding.weight" in message
    assert "Traceback" not in message
    assert verb("evaluate", "run", "text.txt", "--json") == 0


def test_a_damaged_checkpoint_is_said(folder, capsys):
    assert train("--out", "run") == 0
    weights = (folder / "run" / "last").resolve() / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for arguments in (["evaluate", "run", "text.txt"], ["train", "--out", "run", "--resume"]):
        assert verb(*arguments) == 2
        assert "model.safetensors is cut short" in capsys.readouterr().err
