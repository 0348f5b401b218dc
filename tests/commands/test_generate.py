"""The verb generate, in this process."""

import errno
import io
import os

import pytest
import torch

from lengthwise.generation import session as sessions
from lengthwise.generation.sample import generate
from lengthwise.models import LanguageModel, load
from tests.training.runs import verb


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    LanguageModel(256, 16, "min_gru + swiglu").save(tmp_path / "model")
    return tmp_path / "model"


def stdin(monkeypatch, content, terminal=False):
    stream = io.TextIOWrapper(io.BytesIO(content))
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setattr("sys.stdin", stream)


def written(capfdbinary):
    return capfdbinary.readouterr().out.decode("utf-8")


def test_the_text_is_what_the_library_generates(checkpoint, capfdbinary):
    assert verb("generate", str(checkpoint), "--prompt", "Once", "--max-tokens", "40", "--seed", "4") == 0
    tokens = bytes(generate(load(checkpoint), "Once", max_tokens=40, seed=4))
    assert written(capfdbinary) == tokens.decode("utf-8", errors="replace") + "\n"


def test_the_prompt_from_text_file_and_standard_input_is_the_same(checkpoint, tmp_path, monkeypatch, capfdbinary):
    (tmp_path / "p.txt").write_text("It was é")
    found = []
    for prompt in (["--prompt", "It was é"], ["--prompt-file", str(tmp_path / "p.txt")], ["--prompt-file", "-"], []):
        stdin(monkeypatch, "It was é".encode())
        assert verb("generate", str(checkpoint), *prompt, "--seed", "1", "--max-tokens", "20") == 0
        found.append(written(capfdbinary))
    assert found == [found[0]] * 4


def test_a_saved_state_goes_on_without_the_prompt(checkpoint, tmp_path, monkeypatch, capfdbinary):
    stdin(monkeypatch, b"never read")
    ask, state = ["generate", str(checkpoint), "--top-k", "90"], str(tmp_path / "s.state")
    assert verb(*ask, "--prompt", "abc", "--seed", "1", "--max-tokens", "30") == 0
    whole = written(capfdbinary)
    assert verb(*ask, "--prompt", "abc", "--seed", "1", "--max-tokens", "12", "--save-state", state) == 0
    parts = written(capfdbinary)[:-1]
    assert verb(*ask, "--load-state", state, "--max-tokens", "18") == 0
    assert (parts + written(capfdbinary)).replace("\ufffd", "") == whole.replace("\ufffd", "")


def test_ctrl_c_saves_the_state_of_what_was_written(checkpoint, tmp_path, monkeypatch):
    from lengthwise.commands import generate as command

    told, put = [], command.put

    def interrupted(text):
        told.append(text)
        put(text)
        if len(told) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(command, "put", interrupted)
    state = tmp_path / "s.state"
    assert verb("generate", str(checkpoint), "--prompt", "abc", "--seed", "2", "--save-state", str(state)) == 130
    monkeypatch.undo()
    net = load(checkpoint)
    rest = list(sessions.Session.load(state, net).generate(6, sessions.Sampling()))
    assert rest == list(generate(net, "abc", seed=2, max_tokens=11))[5:]


def test_a_full_disk_is_one_sentence_and_the_state_before_is_kept(checkpoint, tmp_path, monkeypatch, capfd):
    state = tmp_path / "s.state"
    ask = ["generate", str(checkpoint), "--prompt", "abc", "--max-tokens", "3", "--save-state", str(state)]
    assert verb(*ask) == 0
    before = state.read_bytes()

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sessions, "save_state", full)
    assert verb(*ask) == 2
    assert "is full; the text is complete" in capfd.readouterr().err
    assert state.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", ""], "at least one token"),
        (["--prompt", "a", "--prompt-file", "-"], "not both"),
        (["--prompt-file", "none.txt"], "none.txt"),
        (["--prompt", "a", "--temperature", "-1"], "temperature"),
        (["--prompt", "a", "--load-state", "none.state"], "none.state"),
        (["--prompt", "a", "--tokenizer", "none.json"], "none.json"),
        ([], "no prompt given"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message, checkpoint, monkeypatch, capfd):
    stdin(monkeypatch, b"", terminal=True)
    assert verb("generate", str(checkpoint), *arguments) == 2
    assert message in capfd.readouterr().err


def test_a_folder_without_a_checkpoint_is_said(tmp_path, capfd):
    assert verb("generate", str(tmp_path), "--prompt", "a") == 2
    assert "holds no checkpoint" in capfd.readouterr().err
