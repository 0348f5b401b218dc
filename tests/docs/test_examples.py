"""The Python code in README and docs runs, each page as one program."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")]


RUN = """
import runpy, sys, torch
for page in sys.argv[1:]:
    torch.manual_seed(0)
    runpy.run_path(page)
"""


@pytest.mark.slow
def test_the_code_of_every_page_runs(tmp_path):
    programs = []
    for page in PAGES:
        blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        programs.append(tmp_path / f"{page.stem}.py")  # a file, so that an error points at the page and the line
        programs[-1].write_text("\n\n".join(blocks), encoding="utf-8")
    # A process of its own: torch.compile, which a law tries, can't see through the run-time checks of annotations.
    command = [sys.executable, "-c", RUN, *map(str, programs)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def test_every_page_of_the_navigation_exists():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = re.findall(r"(\S+\.md)$", text, re.MULTILINE)
    assert named
    missing = [name for name in named if not (ROOT / "docs" / name).is_file()]
    assert not missing
