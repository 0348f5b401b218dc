"""A run that the system kills goes on as if nothing had been."""

import signal

import pytest

from tests.training.runs import metrics, python, trainer

PROGRAM = """
import os, signal, sys
from lengthwise.training import loop, snapshot
from tests.training.runs import trainer

where, folder = sys.argv[1:]
run = trainer(folder, carry_state=True)

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

if where == "in a step":
    step = loop.Trainer.step
    loop.Trainer.step = lambda self, rows: kill() if self.progress.step == 5 else step(self, rows)
elif where == "while a checkpoint is written":
    write = snapshot.write_json
    snapshot.write_json = lambda path, value: kill() if run.progress.step == 4 else write(path, value)
run.fit()
"""


@pytest.mark.parametrize(("where", "last"), [("in a step", 4), ("while a checkpoint is written", 2)])
def test_a_killed_run_goes_on_bit_for_bit(where, last, tmp_path):
    killed = python(PROGRAM, where, tmp_path / "killed")
    _, errors = killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL, errors
    again = trainer(tmp_path / "killed", carry_state=True)
    again.go_on((tmp_path / "killed" / "last").resolve())
    assert again.progress.step == last
    assert again.fit()
    assert trainer(tmp_path / "whole", carry_state=True).fit()
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    assert sorted(f.name for f in (tmp_path / "killed" / "checkpoints").iterdir()) == ["step-00000006"]
