"""The verb extrapolate from outside, and inside one process where something has to go wrong on purpose."""

import dataclasses
import json
import shlex
import subprocess
import sys

import pytest
import torch
import tyro

import lengthwise as lw
from lengthwise.commands.extrapolate import extrapolate
from lengthwise.errors import InputError
from lengthwise.extrapolation import engine
from lengthwise.options.extrapolation import ExtrapolateOptions
from lengthwise.options.stored import command_line
from lengthwise.reports.records import load
from tests.commands.running import lengthwise, stopped_by_ctrl_c

TINY = ExtrapolateOptions(
    positions=("rope", "learned"), length=16, times=(1, 2, 4), layers="attention(heads=2) + mlp", dim=16, steps=3,
    batch=4, windows=8,
)  # fmt: skip


@pytest.fixture
def options(text, tmp_path):
    return dataclasses.replace(TINY, data=(str(text),), output=tmp_path / "run")


def arguments(options) -> list[str]:
    return [*shlex.split(command_line(options, "extrapolate"))[1:], "--output", str(options.output)]


def numbers(options) -> dict:
    return json.loads((options.output / "report.json").read_text())


def test_from_the_command_line_to_the_report(options):
    command = [sys.executable, "-m", "lengthwise", *arguments(options)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "For contexts of 64" in ran.stdout
    assert "</html>" in (options.output / "report.html").read_text()
    told = numbers(options)
    assert set(told["series"]) == {
        "rope", "rope + interpolation", "rope + ntk", "rope + temperature", "learned", "learned + temperature"
    }  # fmt: skip
    assert [p["at"] for p in told["series"]["rope + ntk"]["bits_per_byte"]] == [16, 32, 64]
    assert told["series"]["learned"]["usable_up_to"] == 16
    assert {s["reason"] for s in told["skipped"]} == {"its positions end at 16"}
    assert told["notice"] == ""
    model = lw.load(options.output / "models" / "1-rope-seed-0")
    assert model.config["position"] == "rope"


def test_ctrl_c_leaves_a_report_and_the_run_can_be_resumed(options):
    long = dataclasses.replace(options, positions=("none", "rope", "learned", "alibi"), steps=None, seconds=3.0)
    results, measured = options.output / "results.jsonl", '"candidate": "none", "seed": 0, "stage": "measuring"'
    code, said = stopped_by_ctrl_c(*arguments(long), results=results, once=measured)
    assert code == 130, said
    assert "Traceback" not in said
    assert "--resume" in said.replace("\n", " ")
    before = numbers(options)
    assert "none" in before["series"]
    assert "alibi" not in before["series"]
    assert "not complete" in before["notice"]
    assert (options.output / "report.html").read_text().rstrip().endswith("</html>")

    ran = lengthwise("extrapolate", "--resume", "--output", str(options.output))
    assert ran.returncode == 0, ran.stderr
    after = numbers(options)
    assert {"none", "rope", "learned", "alibi"} <= set(after["series"])
    assert after["series"]["none"] == before["series"]["none"]
    assert after["notice"] == ""


def test_what_is_finished_is_kept(options, monkeypatch, capsys):
    train, trained = engine.train, []

    def interrupted(model, *args, **kwargs):
        trained.append(model)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train(model, *args, **kwargs)

    monkeypatch.setattr(engine, "train", interrupted)
    assert extrapolate(options) == 130
    assert "--resume" in capsys.readouterr().out.replace("\n", " ")
    before = numbers(options)
    assert "learned" not in before["series"]
    assert "not complete: learned, learned + temperature left" in (options.output / "report.html").read_text()

    assert extrapolate(ExtrapolateOptions(output=options.output, resume=True)) is None
    assert len(trained) == 3, "only what was missing is trained"
    after = numbers(options)
    assert after["series"]["rope + ntk"] == before["series"]["rope + ntk"]
    assert "learned" in after["series"]
    assert after["notice"] == ""

    assert extrapolate(ExtrapolateOptions(output=options.output, resume=True)) is None
    assert len(trained) == 3
    with pytest.raises(InputError, match="started with --length 16 and can't go on with 32"):
        extrapolate(ExtrapolateOptions(output=options.output, resume=True, length=32))
    with pytest.raises(InputError, match="holds an earlier run"):
        extrapolate(options)


def test_a_series_that_was_only_begun_is_measured_again(options, monkeypatch):
    measure = engine.measure

    def interrupted(model, *args, name, **kwargs):
        for index, record in enumerate(measure(model, *args, name=name, **kwargs)):
            if name == "rope + ntk" and index == 2:
                raise KeyboardInterrupt
            yield record

    one = dataclasses.replace(options, positions=("rope",))
    monkeypatch.setattr(engine, "measure", interrupted)
    assert extrapolate(one) == 130
    monkeypatch.setattr(engine, "measure", measure)
    assert extrapolate(ExtrapolateOptions(output=one.output, resume=True)) is None
    found = [m for m in load(one.output / "results.jsonl").measurements if m.candidate == "rope + ntk"]
    assert len(found) == len({(m.measure, m.at) for m in found})
    assert [p["at"] for p in numbers(one)["series"]["rope + ntk"]["bits_per_byte"]] == [16, 32, 64]


def test_seeds_give_medians_and_a_fixed_seed_gives_the_same_again(options, tmp_path):
    several = dataclasses.replace(options, positions=("none",), scalings=("none",), seeds=(10, 11))
    extrapolate(several)
    results = load(several.output / "results.jsonl")
    assert set(results.seeds("none", "bits_at_length", 64)) == {10, 11}
    one = dataclasses.replace(several, seeds=(11,), output=tmp_path / "again")
    extrapolate(one)
    again = load(one.output / "results.jsonl").seeds("none", "bits_at_length", 64)
    assert again[11] == results.seeds("none", "bits_at_length", 64)[11]


def test_a_model_that_diverges_is_left_out_and_the_others_go_on(options, monkeypatch):
    fresh = engine.Extrapolation.fresh

    def poisoned(self, subject, seed):
        model = fresh(self, subject, seed)
        if subject.name == "rope":
            model.head.weight.data.fill_(float("nan"))
        return model

    monkeypatch.setattr(engine.Extrapolation, "fresh", poisoned)
    extrapolate(options)
    told = numbers(options)
    assert "learned" in told["series"]
    assert any("the loss became nan" in s["reason"] for s in told["skipped"])


def test_checkpoints_are_measured_without_training(options, tmp_path):
    for name, position in (("a", "rope"), ("b", "alibi")):
        lw.LanguageModel(dim=16, layers="attention(heads=2) + mlp", position=position).save(tmp_path / name)
    paths = tuple(str(tmp_path / name) for name in ("a", "b"))
    given = dataclasses.replace(options, checkpoints=paths, scalings=("ntk",))
    assert extrapolate(given) is None
    told = numbers(options)
    assert set(told["series"]) == {"a", "a + ntk", "b"}
    assert told["recall"] == "Recall of a passage", "of keys they know nothing"
    assert not (options.output / "models").exists()
    with pytest.raises(InputError, match=r"give the --length .* not known"):
        extrapolate(dataclasses.replace(given, length=None, output=tmp_path / "other"))

    for path in paths:
        (tmp_path / path / "trainer.json").write_text('{"length": 16}')
    assert extrapolate(dataclasses.replace(given, length=None, output=tmp_path / "of-runs")) is None
    told = json.loads((tmp_path / "of-runs" / "report.json").read_text())
    assert told["trained_length"] == 16, "what the runs say"


def test_models_that_do_not_predict_bytes_are_errors(options, tmp_path):
    lw.LanguageModel(vocab_size=300, dim=16, layers="attention").save(tmp_path / "words")
    lw.Encoder(vocab_size=256, dim=16, layers="attention").save(tmp_path / "encoder")
    lw.LanguageModel(256, 16, "attention(heads=2)", position="learned(length=8)").save(tmp_path / "short")
    for name, described in (("trained", "[]"), ("cut", '{"len'), ("none", '{"length": 0}')):
        lw.LanguageModel(256, 16, "attention(heads=2)").save(tmp_path / name)
        (tmp_path / name / "trainer.json").write_text(described)
        with pytest.raises(InputError, match=r"trainer\.json (must say the length|is cut short)"):
            extrapolate(dataclasses.replace(options, length=None, checkpoints=(str(tmp_path / name),)))
    for name, message in (
        ("words", "300 tokens of a tokenizer"),
        ("encoder", "holds a Encoder"),
        ("no", "is no folder"),
        ("short", "its positions end at 8, before the trained length of 16"),
    ):
        with pytest.raises(InputError, match=message):
            extrapolate(dataclasses.replace(options, length=16, checkpoints=(str(tmp_path / name),)))


def test_a_checkpoint_whose_losses_are_no_numbers_is_said_to_be_so(options, tmp_path, capsys):
    for name, weight in (("good", 0.02), ("broken", float("nan"))):
        model = lw.LanguageModel(256, 16, "attention(heads=2) + mlp")
        torch.nn.init.constant_(model.norm.weight, weight)
        model.save(tmp_path / name)
    both = dataclasses.replace(options, length=16, checkpoints=(str(tmp_path / "good"), str(tmp_path / "broken")))
    assert extrapolate(both) is None
    told = numbers(options)
    assert set(told["series"]) == {"good", "good + interpolation", "good + ntk", "good + temperature"}
    assert {(s["series"], s["reason"]) for s in told["skipped"] if s["at"] == 64} >= {
        ("broken", "its losses are no finite numbers there")
    }
    one = dataclasses.replace(both, checkpoints=both.checkpoints[1:], output=tmp_path / "one")
    with pytest.raises(InputError, match="nothing could be measured; broken: its losses are no finite numbers"):
        extrapolate(one)
    assert "--resume" not in capsys.readouterr().out


def test_nothing_that_could_be_trained_is_an_error(options, capsys):
    with pytest.raises(InputError, match="nothing could be measured; rope: the loss became nan"):
        extrapolate(dataclasses.replace(options, learning_rate=1e30))
    assert "--resume" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": ("rop",)}, "did you mean rope"),
        ({"positions": ("rope(bass=1)",)}, "did you mean base"),
        ({"positions": ("rope", "rope")}, "--positions must be given, each once"),
        ({"positions": ()}, "--positions must be given"),
        ({"positions": ("randomised(alibi, length=40)",)}, "end at 10, before the trained length of 16"),
        ({"positions": ("learned(length=8)",)}, "end at 8, before the trained length of 16"),
        ({"scalings": ("ntkk",)}, "did you mean ntk"),
        ({"layers": "atention"}, "did you mean attention"),
        ({"layers": "attention(causal=False)"}, "causal"),
        ({"data": ("no/such/file",)}, "there is no file or folder"),
        ({"times": (1, 1000)}, r"8 windows of 16000 bytes need 128,001 bytes .* give about 1,280,010"),
        ({"times": (0,)}, "--times"),
        ({"length": 4}, "--length must be at least 16"),
        ({"steps": 5, "seconds": 5.0}, "--steps or --seconds, not both"),
        ({"steps": 0}, "--steps must be at least 1"),
        ({"steps": None, "seconds": -1.0}, "--seconds"),
        ({"batch": 0}, "--batch"),
        ({"keys": 1.5}, "--keys is a share"),
        ({"learning_rate": 0.0}, "--learning-rate"),
        ({"seeds": (1, 1)}, "--seeds must be different numbers from 0 on"),
        ({"seeds": (2**64,)}, "--seeds must be different numbers from 0 on"),
        ({"positions": ("rope(base=nan)",)}, "base must be a number, got nan"),
        ({"checkpoints": ("a", "./a")}, "--checkpoints must be given, each once"),
        ({"checkpoints": ("a",), "seeds": (0, 1)}, "measured once"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, dict) else "",
)
def test_bad_input_is_one_error_and_nothing_is_written(options, changes, message):
    with pytest.raises(InputError, match=message):
        extrapolate(dataclasses.replace(options, **changes))
    assert not options.output.exists()


def test_nothing_to_resume_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no run to resume"):
        extrapolate(ExtrapolateOptions(resume=True))


def test_the_command_line_gives_the_options_back():
    options = dataclasses.replace(TINY, data=("a b.txt",), seeds=(0, 2), positions=("rope(base=500000)",))
    words = shlex.split(command_line(options, "extrapolate"))
    assert words[:2] == ["lengthwise", "extrapolate"]
    assert tyro.cli(ExtrapolateOptions, args=words[2:]) == options
