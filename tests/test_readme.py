"""What the README shows runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

from lengthwise.cli import VERBS

README = Path(__file__).parents[1] / "README.md"


def test_the_first_example_runs(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "runs/example/model.safetensors").is_file()


def test_every_verb_shown_exists():
    assert set(re.findall(r"^lengthwise (\w+)", README.read_text(), re.MULTILINE)) <= set(VERBS)
