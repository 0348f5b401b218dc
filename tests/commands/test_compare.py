import dataclasses
import json
import shlex

import pytest

import lengthwise as lw
from lengthwise.commands import compare as command
from lengthwise.commands.compare import compare
from lengthwise.comparison import engine
from lengthwise.errors import InputError
from lengthwise.options.comparison import CompareOptions
from lengthwise.options.stored import as_json, command_line
from lengthwise.reports.records import load

TINY = CompareOptions(
    layers=("recurrent: min_gru + mlp", "windowed: attention(window=8) + mlp"),
    budget="2s",
    measuring="2s",
    parameters="30k",
    length=16,
    batch=2,
    decode_lengths=(32, 64),
)


@pytest.fixture
def options(text, tmp_path):
    return dataclasses.replace(TINY, data=(str(text),), output=tmp_path / "run")


def test_a_comparison_from_data_to_report(options, capsys):
    assert compare(options) is None
    printed = capsys.readouterr().out
    assert "For quality" in printed
    assert "report.html" in printed.replace("\n", "")
    assert "</html>" in (options.output / "report.html").read_text()

    results = load(options.output / "results.jsonl")
    assert results.names == ["recurrent", "windowed"]
    counts = [c.parameters for c in results.candidates.values()]
    assert max(counts) / min(counts) <= 1.05
    for name in results.names:
        assert 0 < results.value(name, "bits_per_byte").value < 8.5
        assert results.value(name, "bits_per_byte").error > 0
        assert results.value(name, "train_rate").value > 0
        for measure in ("bits_at_context", "train_peak_bytes", "prefill_peak_bytes", "state_bytes", "decode_seconds"):
            assert results.lengths(measure, name), measure
        spent = max(p.seconds for p in results.training if p.candidate == name)
        assert 1.0 <= spent < 1.6

    model = lw.load(next((options.output / "models").iterdir()))
    assert model.config["layers"] == "min_gru + mlp"


def test_an_interrupted_run_reports_what_it_has_and_is_resumed(options, monkeypatch, capsys):
    train, trained = engine.train, []

    def interrupted(model, *args, **kwargs):
        if trained:
            raise KeyboardInterrupt
        trained.append(model)
        return train(model, *args, **kwargs)

    monkeypatch.setattr(engine, "train", interrupted)
    assert compare(options) == 130
    assert "--resume" in capsys.readouterr().out
    before = load(options.output / "results.jsonl")
    assert before.names == ["recurrent"]
    assert "This run is not complete" in (options.output / "report.html").read_text()

    monkeypatch.setattr(engine, "train", train)
    assert compare(CompareOptions(output=options.output, resume=True)) is None
    after = load(options.output / "results.jsonl")
    assert after.names == ["recurrent", "windowed"]
    assert after.value("recurrent", "bits_per_byte") == before.value("recurrent", "bits_per_byte")
    assert "This run is not complete" not in (options.output / "report.html").read_text()


def test_equal_tokens_are_equal(options):
    compare(dataclasses.replace(options, equal="tokens"))
    results = load(options.output / "results.jsonl")
    tokens = {name: max(p.tokens for p in results.training if p.candidate == name) for name in results.names}
    assert len(set(tokens.values())) == 1


def test_a_tokenizer_is_used_and_kept_with_the_models(options, tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="reading with a tokenizer needs the package tokenizers")
    words = {
        word: i
        for i, word in enumerate(("?", "number", "says", "hello", "to", "the", "world", "again", "and", ",", "."))
    }
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    compare(dataclasses.replace(options, tokenizer=tmp_path / "tokenizer.json"))
    results = load(options.output / "results.jsonl")
    assert results.settings.data["bytes_per_token"] > 3
    assert 0 < results.value("recurrent", "bits_per_byte").value < 2
    folders = list((options.output / "models").iterdir())
    assert len(folders) == 2
    assert all((folder / "tokenizer.json").is_file() for folder in folders)


def test_a_candidate_that_diverges_is_left_out_and_the_others_go_on(options, monkeypatch):
    monkeypatch.setattr(engine.Comparison, "build", poisoned(engine.Comparison.build))
    compare(options)
    results = load(options.output / "results.jsonl")
    assert results.value("recurrent", "bits_per_byte") is None
    assert "the loss became nan" in results.skipped[0].reason
    assert results.value("windowed", "bits_per_byte") is not None
    assert "recurrent" in (options.output / "report.html").read_text()


def poisoned(build):
    def wrapped(self, candidate, seed):
        model = build(self, candidate, seed)
        if candidate.name == "recurrent":
            model.head.weight.data.fill_(float("nan"))
        return model

    return wrapped


def test_an_earlier_run_is_never_overwritten(options):
    options.output.mkdir()
    (options.output / "results.jsonl").write_text('{"kind": "candidate"}\n')
    with pytest.raises(InputError, match="holds an earlier run"):
        compare(options)


def test_resuming_with_other_options_is_an_error(options, monkeypatch):
    monkeypatch.setattr(command, "run", lambda plan, before, folder, console: False)
    options.output.mkdir()
    settings = {"kind": "settings", "date": "", "command": "", "data": {}, "recipe": {}, "machine": {}}
    line = json.dumps({**settings, "options": as_json(options)})
    (options.output / "results.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match="started with --length 16 and can't go on with 64"):
        compare(CompareOptions(output=options.output, resume=True, length=64))


def test_nothing_to_resume_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no run to resume"):
        compare(CompareOptions(resume=True))
    with pytest.raises(InputError, match="can't be read"):
        compare(CompareOptions(resume=True, output=tmp_path / "nowhere"))


def changed(**changes):
    return changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (changed(data=("no/such/file",)), "there is no file or folder"),
        (changed(layers=("2*(atention + mlp)",)), "did you mean attention"),
        (changed(layers=("attention(window=0)",)), "window"),
        (changed(layers=("attention +",)), "the end"),
        (changed(systems=("no-such-system",)), "unknown system"),
        (changed(budget="0.1s"), "leaves"),
        (changed(budget="soon"), "a duration is written as"),
        (changed(parameters="-3"), "a number is written as"),
        (changed(length=1), "--length must be at least 16"),
        (changed(length=100_000), "give more data or a smaller"),
        (changed(length=8_000), "held-out tenth"),
        (changed(batch=0), "--batch"),
        (changed(seeds=()), "--seeds"),
        (changed(seeds=(1, 1)), "--seeds"),
        (changed(learning_rate=0.0), "--learning-rate"),
        (changed(decode_lengths=(0,)), "--decode-lengths"),
        (changed(position="rop"), "did you mean rope"),
        (changed(memory="lots"), "a size is written as"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_bad_input_is_one_error_and_nothing_is_written(options, changes, message):
    with pytest.raises(InputError, match=message):
        compare(dataclasses.replace(options, **changes))
    assert not options.output.exists()


def test_an_empty_file_and_an_empty_folder_are_errors(options, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "folder").mkdir()
    for path in ("empty.txt", "folder"):
        with pytest.raises(InputError, match="holds no data"):
            compare(dataclasses.replace(options, data=(str(tmp_path / path),)))


def test_the_command_line_gives_the_options_back():
    import tyro

    options = dataclasses.replace(TINY, data=("a b.txt",), seeds=(0, 2), systems=("mamba",))
    words = shlex.split(command_line(options, "compare", repeated=("layers",)))
    assert words[:2] == ["lengthwise", "compare"]
    assert tyro.cli(CompareOptions, args=words[2:]) == options
