"""The verb `bench`."""

import json

import pytest

from lengthwise.benches import BENCHES
from lengthwise.benches.row import Row
from lengthwise.commands import bench as command
from lengthwise.errors import InputError


@pytest.fixture
def quick(monkeypatch):
    """Two benchmarks that measure nothing, and no measurement of the machine."""
    rows = [Row("one, L 8", 0.0125, {"a loop": 12.0, "peer": 0.5}, 0.37, "matrix products", "a note"), Row("two", 1.5)]
    monkeypatch.setattr("lengthwise.measure.matmul_rate", lambda: 2e11)
    monkeypatch.setattr("lengthwise.measure.read_bandwidth", lambda: 16e9)
    monkeypatch.setattr(command, "function", lambda name: lambda: rows)
    return rows


def test_a_table_with_seconds_ratios_and_limits(quick, capsys):
    assert command.bench(["scan"]) == 0
    printed = capsys.readouterr().out
    for words in ["200 GFLOP/s", "16.0 GB/s", "one, L 8", "12.5 ms", "a loop: 12", "peer: 0.5", "37%", "a note", "1.5"]:
        assert words in printed


def test_json_holds_the_rows_the_limits_and_the_machine(quick, capsys):
    command.bench(json=True)
    printed = json.loads(capsys.readouterr().out)
    assert set(printed["ops"]) == set(BENCHES)
    assert Row(**printed["ops"]["scan"][0]) == quick[0]
    assert printed["limits"]["matmul_flops_per_second"] == 2e11
    assert printed["machine"]["threads"]
    assert printed["versions"]["torch"]


def test_an_unknown_benchmark_suggests_the_nearest():
    with pytest.raises(InputError, match="did you mean selective_scan"):
        command.bench(["selective_scn"])


@pytest.mark.parametrize("name", BENCHES)
def test_every_benchmark_has_its_function(name):
    assert callable(command.function(name))
