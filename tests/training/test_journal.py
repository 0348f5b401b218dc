import json

from lengthwise.training.journal import METRICS, Bar, Journal, read_metrics


def test_going_on_takes_back_what_was_written_after_the_checkpoint(tmp_path):
    journal = Journal(tmp_path, 0)
    for step in range(1, 6):
        journal.write("train", step, loss=1.0 / step)
    journal.close()
    with open(tmp_path / METRICS, "a") as file:
        file.write('{"kind": "train", "step": 6, "lo')  # a kill in the middle of a line
    assert [r["step"] for r in read_metrics(tmp_path / METRICS)] == [1, 2, 3, 4, 5]
    journal = Journal(tmp_path, 3)
    journal.write("train", 4, loss=0.25)
    journal.close()
    lines = (tmp_path / METRICS).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    assert json.loads(lines[2])["loss"] == 1 / 3  # every digit is kept
    assert list((tmp_path / "tensorboard").iterdir())


def test_without_a_terminal_ten_lines_tell_the_progress(capsys):
    with Bar("counting", 100) as bar:
        for _ in range(100):
            bar.advance("fine")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 10
    assert "100 of 100" in lines[-1]
