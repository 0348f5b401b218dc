"""The verbs `systems`, `show` and `reproduce`, on systems made for the test."""

import json
import types

import pytest

from lengthwise.errors import InputError
from lengthwise.systems import runner
from lengthwise.systems.results import read_result
from lengthwise.systems.system import System, at_least, at_most, reported


def made(figures, key="made"):
    """A system whose experiment yields these figures; one that is an exception is raised."""
    system = System(key=key, title="Made for a test", arxiv="0000.00000", parts=["mixers.attention"], claim="it works")

    @system.experiment
    def reproduce(run):
        for i, figure in enumerate(figures):
            run.progress("measuring", i / len(figures))
            if isinstance(figure, BaseException):
                raise figure
            yield figure

    return system


@pytest.fixture
def build(monkeypatch):
    """Make systems known to the runner, by key."""
    known = {}

    def find(key):
        if key not in known:
            raise InputError(f"unknown system {key!r}")
        return known[key]

    monkeypatch.setattr(runner, "SYSTEMS", known)
    monkeypatch.setattr(runner, "find_system", find)
    monkeypatch.setattr(runner, "find_entry", find)

    def build(key, *figures):
        known[key] = made(figures, key)

    return build


GOOD = at_least("accuracy", 0.97, 0.9, claimed="99 %")
BAD = at_most("ratio", 3.0, 1.5)
PLAIN = reported("speed", 12.0)


def test_reproduce_prints_writes_and_says_whether_it_holds(build, tmp_path, capsys):
    build("good", GOOD, PLAIN)
    build("bad", GOOD, BAD)
    assert runner.reproduce(["good"], output=tmp_path) == 0
    assert runner.reproduce(["good", "bad"], output=tmp_path) == 1
    printed = capsys.readouterr().out
    for word in ["claimed", "measured", "threshold", "99 %", "0.97", "≥ 0.9", "holds", "does not hold", "1 of 2 hold"]:
        assert word in printed
    good, bad = read_result("good", tmp_path), read_result("bad", tmp_path)
    assert (good.holds, bad.holds) == (True, False)
    assert good.figures == (GOOD, PLAIN)
    assert good.seeds == (0, 1, 2)
    assert good.machine["processor"]
    assert good.versions["torch"]


def test_reproduce_prints_json_alone_on_standard_output(build, tmp_path, capsys):
    build("good", GOOD)
    runner.reproduce(["good"], seeds=(5,), json=True, output=tmp_path)
    printed = json.loads(capsys.readouterr().out)
    assert printed == [json.loads((tmp_path / "good.json").read_text())]
    assert printed[0]["seeds"] == [5]


def test_a_number_that_is_not_finite_does_not_hold_and_is_kept(build, tmp_path):
    build("lost", at_least("accuracy", float("nan"), 0.9), at_most("loss", float("inf"), 1.0))
    assert runner.reproduce(["lost"], output=tmp_path) == 1
    json.loads((tmp_path / "lost.json").read_text(), parse_constant=pytest.fail)
    first, second = read_result("lost", tmp_path).figures
    assert first.measured != first.measured
    assert second.measured == float("inf")


def test_ctrl_c_keeps_what_was_measured_and_the_whole_result_before(build, tmp_path):
    build("long", GOOD)
    runner.reproduce(["long"], output=tmp_path)
    build("long", GOOD, PLAIN, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        runner.reproduce(["long"], output=tmp_path)
    assert read_result("long", tmp_path).figures == (GOOD,)
    partial = json.loads((tmp_path / "long.partial.json").read_text())
    assert partial["complete"] is partial["holds"] is False
    assert [f["name"] for f in partial["figures"]] == ["accuracy", "speed"]
    build("long", GOOD)
    runner.reproduce(["long"], output=tmp_path)
    assert not (tmp_path / "long.partial.json").exists()


def test_resume_leaves_out_what_was_measured_under_the_same_conditions(build, tmp_path):
    build("one", GOOD)
    runner.reproduce(["one"], output=tmp_path)
    build("one", BAD)
    assert runner.reproduce(["one"], output=tmp_path, resume=True) == 0
    assert runner.reproduce(["one"], seeds=(7,), output=tmp_path, resume=True) == 1
    assert runner.reproduce(["one"], seeds=(7,), output=tmp_path) == 1


def test_all_and_repeated_keys_run_each_system_once(build):
    build("one", GOOD)
    build("two", GOOD)
    assert runner.chosen(["two", "all", "one"]) == ["two", "one"]


@pytest.mark.parametrize(("keys", "message"), [([], "name one or more"), (["what"], "unknown system")])
def test_nothing_runs_for_keys_that_are_wrong(build, keys, message, tmp_path):
    build("one", GOOD)
    with pytest.raises(InputError, match=message):
        runner.reproduce([*(["one"] if keys else []), *keys], output=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": 1, "figures": 3}', '{"schema": 99}'])
def test_a_broken_result_is_one_sentence(tmp_path, content):
    (tmp_path / "mamba.json").write_text(content)
    with pytest.raises(InputError, match=r"mamba\.json"):
        read_result("mamba", tmp_path)


def test_systems_and_show_print_what_there_is(capsys, monkeypatch):
    runner.list_systems(find="rope")
    printed = capsys.readouterr().out
    assert "roformer" in printed
    assert "2104.09864" in printed
    runner.list_systems(find="yoso")
    assert "not built yet" in capsys.readouterr().out
    runner.show("yoso")
    assert "not built yet" in capsys.readouterr().out
    with pytest.raises(InputError, match="no system matches"):
        runner.list_systems(find="nothing of this name")
    with pytest.raises(InputError, match="did you mean mamba"):
        runner.show("mambo")


def test_show_explains_a_built_system(build, capsys, monkeypatch, tmp_path):
    build("good", GOOD)
    monkeypatch.setattr(
        runner,
        "find_entry",
        lambda key: types.SimpleNamespace(
            key=key, title="Made for a test", year=2024, short="in short", link="https://arxiv.org/abs/0000.00000"
        ),
    )
    runner.reproduce(["good"], output=tmp_path)
    monkeypatch.setattr(runner, "last_result", lambda key: read_result(key, tmp_path))
    runner.show("good")
    printed = capsys.readouterr().out
    for words in ["Made for a test", "0000.00000", "it works", "mixers.attention", "seeds 0, 1, 2", "0.97", "holds"]:
        assert words in printed
