"""What the README shows runs as it stands."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_first_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "runs/example/model.safetensors").is_file()


def test_every_verb_shown_exists():
    from lengthwise.cli import VERBS

    assert set(re.findall(r"^lengthwise (\w+)", README.read_text(), re.MULTILINE)) <= set(VERBS)
