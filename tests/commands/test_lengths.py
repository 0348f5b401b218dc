import dataclasses
import json
import shlex

import pytest
import tyro

import lengthwise as lw
from lengthwise.commands import lengths as command
from lengthwise.commands.lengths import lengths
from lengthwise.comparison import length_scoring, length_study
from lengthwise.errors import InputError
from lengthwise.options.lengths import LengthsOptions
from lengthwise.options.stored import command_line
from lengthwise.reports.records import load
from tests.commands.running import lengthwise, stopped_by_ctrl_c

TINY = LengthsOptions(
    lengths=(16, 64),
    layers=("recurrent: min_gru + mlp", "attending: attention + mlp"),
    tokens="520",
    update_tokens=128,
    parameters="30k",
    seeds=(10,),
)
KEYS = ["recurrent @ 16", "recurrent @ 64", "attending @ 16", "attending @ 64"]


@pytest.fixture(autouse=True)
def few_passages(monkeypatch):
    monkeypatch.setattr(length_scoring, "PASSAGES", 16)
    monkeypatch.setattr(length_scoring, "PAIRS", 16)


@pytest.fixture
def options(text, tmp_path):
    return dataclasses.replace(TINY, data=(str(text),), output=tmp_path / "run")


def test_a_study_from_data_to_report(options, capsys):
    assert lengths(options) is None
    printed = capsys.readouterr().out
    assert "Overall: recurrent @" in printed
    assert "report.html" in printed.replace("\n", "")
    page = (options.output / "report.html").read_text()
    assert "Which length to train at?" in page
    assert "</html>" in page

    results = load(options.output / "results.jsonl")
    assert results.names == KEYS
    for key in KEYS:
        assert 0 < results.value(key, "bits_long").value < 8.5
        assert 0 <= results.value(key, "pairs").value <= 1
        assert results.value(key, "updates").value == 520 // 128
        assert results.value(key, "run_seconds").value > 0
        longest = int(key.split(" @ ")[1])
        assert results.lengths("bits_at_context", key) == [n for n in (16, 32, 64) if n <= longest]
    for key in ("recurrent @ 16", "attending @ 16"):
        assert results.value(key, "context_gain").value == 0
        assert results.value(key, "bits_long") == results.value(key, "bits_short")
    spent = {p.candidate: p.tokens for p in results.training}
    assert spent["recurrent @ 16"] == 4 * 8 * 15
    assert spent["recurrent @ 64"] == 4 * 2 * 63

    models = sorted(folder.name for folder in (options.output / "models").iterdir())
    assert models == [f"{i // 2 + 1}-{key.replace(' @ ', '-')}-seed-10" for i, key in enumerate(KEYS)]
    assert lw.load(options.output / "models" / models[0]).config["layers"] == "min_gru + mlp"


def test_equal_windows_give_short_ones_more_updates_and_json_has_it_all(options, capsys):
    changed = {"mode": "windows", "update_windows": 4, "json": True, "layers": ("min_gru",), "pairs": "none"}
    lengths(dataclasses.replace(options, **changed))
    said = json.loads(capsys.readouterr().out)
    assert [(row["length"], row["updates"]) for row in said["table"]] == [(16, 520 // 64), (64, 520 // 256)]
    assert said["table"][-1]["of_longest"] == 1
    assert "pairs" not in said["table"][0]["scores"]
    assert set(said["recommended"]["min_gru"]) == {"overall", "agrees", *said["table"][0]["scores"]}


def test_a_run_of_seconds_takes_them(options):
    lengths(dataclasses.replace(options, tokens=None, seconds="0.3s", layers=("min_gru",)))
    results = load(options.output / "results.jsonl")
    for key in results.names:
        assert 0.3 <= results.value(key, "run_seconds").value < 1.0
        assert results.value(key, "updates").value > 0


def test_an_interrupted_study_reports_what_it_has_and_is_resumed(options, monkeypatch, capsys):
    train, trained = length_study.train, []

    def interrupted(model, *args, **kwargs):
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(model)
        return train(model, *args, **kwargs)

    monkeypatch.setattr(length_study, "train", interrupted)
    assert lengths(options) == 130
    assert "--resume" in capsys.readouterr().out
    before = load(options.output / "results.jsonl")
    assert before.names == KEYS[:3]
    assert "This run is not complete: attending @ 64" in (options.output / "report.html").read_text()

    monkeypatch.setattr(length_study, "train", train)
    assert lengths(LengthsOptions(output=options.output, resume=True, json=True)) is None
    after = load(options.output / "results.jsonl")
    assert after.names == KEYS
    assert after.value(KEYS[0], "bits_long") == before.value(KEYS[0], "bits_long")
    assert "This run is not complete" not in (options.output / "report.html").read_text()


def test_ctrl_c_leaves_a_report_and_the_run_can_be_resumed(options):
    long = dataclasses.replace(options, tokens=None, seconds="3s")
    given = [*shlex.split(command_line(long, "lengths"))[1:], "--output", str(options.output)]
    results = options.output / "results.jsonl"
    code, said = stopped_by_ctrl_c(*given, results=results, once='"finished", "candidate": "recurrent @ 16"')
    assert code == 130, said
    assert "Traceback" not in said
    assert "--resume" in said.replace("\n", " ")
    before = load(results)
    assert before.names[0] == KEYS[0]
    assert KEYS[-1] not in before.names
    page = (options.output / "report.html").read_text()
    assert "This run is not complete" in page
    assert page.rstrip().endswith("</html>")

    ran = lengthwise("lengths", "--resume", "--output", str(options.output))
    assert ran.returncode == 0, ran.stderr
    after = load(results)
    assert after.names == KEYS
    assert after.value(KEYS[0], "bits_long") == before.value(KEYS[0], "bits_long")
    assert "This run is not complete" not in (options.output / "report.html").read_text()


def test_nothing_that_could_be_trained_is_an_error(options, capsys):
    with pytest.raises(InputError, match="nothing could be measured; recurrent @ 16: the loss became nan"):
        lengths(dataclasses.replace(options, learning_rate=1e30))
    assert "--resume" not in capsys.readouterr().out


def test_the_default_budget_is_written_down(options):
    plan = length_study.make_length_plan(dataclasses.replace(options, tokens=None))
    assert plan.options.tokens == length_study.TOKENS
    assert "--tokens 500k" in plan.settings.command


def test_a_study_stopped_before_anything_is_measured_can_be_resumed(options, monkeypatch, capsys):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(length_study, "warm_up", stop)
        assert lengths(options) == 130
    assert "nothing was measured yet" in capsys.readouterr().out
    assert lengths(LengthsOptions(output=options.output, resume=True)) is None
    assert load(options.output / "results.jsonl").names == KEYS


def test_a_length_that_diverges_is_left_out_and_the_others_go_on(options, monkeypatch):
    score = length_study.train

    def broken(model, batches, *args, **kwargs):
        if next(batches).shape[1] == 16:
            model.head.weight.data.fill_(float("nan"))
        return score(model, batches, *args, **kwargs)

    monkeypatch.setattr(length_study, "train", broken)
    lengths(dataclasses.replace(options, layers=("min_gru",)))
    results = load(options.output / "results.jsonl")
    assert results.names == ["min_gru @ 64"]
    assert "the loss became nan" in results.skipped[-1].reason


def test_the_seeds_give_other_models_of_the_same_windows(options):
    lengths(dataclasses.replace(options, seeds=(10, 11), layers=("min_gru",)))
    results = load(options.output / "results.jsonl")
    first, second = results.seeds("min_gru @ 16", "bits_long").values()
    assert first.value != second.value


def test_an_earlier_run_is_never_overwritten(options):
    options.output.mkdir()
    (options.output / "results.jsonl").write_text('{"kind": "candidate"}\n')
    with pytest.raises(InputError, match="holds an earlier run"):
        lengths(options)


def test_nothing_to_resume_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no run to resume"):
        lengths(LengthsOptions(resume=True))


def changed(**changes):
    return changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (changed(data=("no/such/file",)), "there is no file or folder"),
        (changed(layers=("2*(atention + mlp)",)), "did you mean attention"),
        (changed(layers=("min_gru", "min_gru")), "two candidates are called"),
        (changed(lengths=(64,)), "--lengths must be at least two"),
        (changed(lengths=(16, 16)), "--lengths must be at least two"),
        (changed(lengths=(8, 64)), "from 16 on"),
        (changed(lengths=(16, 48)), "can't be cut into windows of 48"),
        (changed(lengths=(16, 4096), update_tokens=4096, tokens="10k"), "give more data or smaller --lengths"),
        (changed(tokens="100"), "less than one update"),
        (changed(tokens="1k", seconds="1s"), "--tokens or --seconds, not both"),
        (changed(tokens="many"), "a number is written as"),
        (changed(tokens=None, seconds="soon"), "a duration is written as"),
        (changed(update_tokens=0), "--update-tokens must be at least 1"),
        (changed(update_windows=0), "--update-windows must be at least 1"),
        (changed(tolerance=-1.0), "--tolerance must be at least 0"),
        (changed(seeds=()), "--seeds"),
        (changed(seeds=(2**64,)), "--seeds must be different numbers from 0 on"),
        (changed(tokens="0"), "must be greater than 0"),
        (changed(learning_rate=0.0), "--learning-rate"),
        (changed(position="rop"), "did you mean rope"),
        (changed(position="learned(length=32)"), "learned positions end at 31"),
        (changed(position="randomised(alibi, length=80)"), "drawn for 20 tokens, got 63"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_bad_input_is_one_error_and_nothing_is_written(options, changes, message):
    with pytest.raises(InputError, match=message):
        lengths(dataclasses.replace(options, **changes))
    assert not options.output.exists()


def test_the_command_line_gives_the_options_back():
    options = dataclasses.replace(TINY, data=("a b.txt",), seeds=(0, 2), mode="windows")
    words = shlex.split(command_line(options, "lengths"))
    assert words[:2] == ["lengthwise", "lengths"]
    assert tyro.cli(LengthsOptions, args=words[2:]) == options


def test_runs_without_an_output_go_to_a_folder_of_their_own(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command.LengthStudy, "run", lambda self: None)
    lengths(dataclasses.replace(options, output=None))
    assert len(list((tmp_path / "lengths").glob("*/results.jsonl"))) == 1
