"""A study that the system kills while something is written goes on as if nothing had been."""

import json
import signal

import pytest

import lengthwise as lw
from lengthwise.reports.records import load
from tests.commands.running import lengthwise
from tests.training.runs import python

PROGRAM = """
import os, signal, sys, types
from lengthwise.cli import main
from lengthwise.models import saving
from lengthwise.reports import page, records

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

where, *arguments = sys.argv[1:]
if where == "within a line of the results":
    write = records.RecordFile.write

    def half(self, record):
        if isinstance(record, records.Finished) and record.stage != "training":
            self._file.write(records.to_json(record)[:30])
            self._file.flush()
            kill()
        write(self, record)

    records.RecordFile.write = half
elif where == "between the weights of a model and its description":
    saving.write_json = kill
elif where == "before the report has its name":
    page.os = types.SimpleNamespace(replace=kill)
main(arguments)
"""

COMMANDS = {
    "extrapolate": (
        "--positions rope --scalings none ntk --length 16 --times 1 2 --steps 2 --dim 16 --batch 2 --windows 8 "
        "--layers attention(heads=2)+mlp"
    ),
    "lengths": "--lengths 16 32 --tokens 300 --update-tokens 64 --parameters 30k --layers mine:attention+mlp",
}
MEASURED = {"extrapolate": ["rope", "rope + ntk"], "lengths": ["mine @ 16", "mine @ 32"]}


@pytest.mark.parametrize("verb", COMMANDS)
@pytest.mark.parametrize(
    "where",
    [
        "within a line of the results",
        "between the weights of a model and its description",
        "before the report has its name",
    ],
)
def test_a_killed_study_goes_on(verb, where, text, tmp_path):
    run = tmp_path / "run"
    killed = python(PROGRAM, where, verb, text, *COMMANDS[verb].split(), "--output", run)
    _, errors = killed.communicate(timeout=600)
    assert killed.returncode == -signal.SIGKILL, errors
    assert not (run / "report.html").exists()

    again = lengthwise(verb, "--resume", "--output", str(run))
    assert again.returncode == 0, again.stderr
    results = load(run / "results.jsonl")
    assert results.names == MEASURED[verb]
    for line in (run / "results.jsonl").read_text().splitlines():
        assert "kind" in json.loads(line)
    once = [(m.candidate, m.seed, m.measure, m.at) for m in results.measurements]
    assert len(once) == len(set(once))
    assert (run / "report.html").read_text().rstrip().endswith("</html>")
    for model in (run / "models").iterdir():
        assert isinstance(lw.load(model), lw.LanguageModel)
