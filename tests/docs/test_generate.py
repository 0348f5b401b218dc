"""What is generated in README and docs is what its sources say."""

import importlib.util
from pathlib import Path

import pytest

from lengthwise.systems import SYSTEMS
from lengthwise.systems.catalogue import CATALOGUE
from lengthwise.systems.results import Result
from lengthwise.systems.system import at_least

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nothing_generated_is_stale(generate):
    names = [str(path.relative_to(ROOT)) for path in generate.stale()]
    assert not names, f"run `python docs/generate.py`; stale: {', '.join(names)}"


def test_a_changed_result_makes_the_pages_stale(generate, monkeypatch):
    figures = (at_least("accuracy", 0.123, 0.9, claimed="99 %"),)
    result = Result("mamba", "2001-02-03T04:05:06+00:00", 7.0, (0,), figures, {"processor": "an abacus"}, {})
    monkeypatch.setattr(generate, "read_result", lambda key, folder: result if key == "mamba" else None)
    stale = {path.relative_to(ROOT).as_posix() for path in generate.stale()}
    assert {"README.md", "docs/systems/mamba.md", "docs/systems/index.md"} <= stale
    page = generate.system_page("mamba")
    for words in ["2001-02-03", "an abacus", "accuracy", "99 %", "0.123", "≥ 0.9", "does not hold"]:
        assert words in page


def test_pages_name_every_system(generate):
    readme, index = generate.readme_systems(), generate.system_index()
    for key, entry in CATALOGUE.items():
        for page in (readme, index):
            assert f"`{key}`" in page
            assert entry.link in page
    for key in SYSTEMS:
        assert f"]({key}.md)" in index
        assert f"](docs/systems/{key}.md)" in readme


def test_what_nothing_generates_any_more_is_found(generate, monkeypatch, tmp_path):
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    page = tmp_path / "docs" / "systems" / "gone.md"
    page.parent.mkdir(parents=True)
    page.touch()
    assert generate.left_over([]) == [page]
    assert generate.left_over([page]) == []


def test_markers_must_be_there_once(generate):
    text = "a <!-- x:begin --> old <!-- x:end --> b"
    assert generate.between(text, "x", "new") == "a <!-- x:begin -->\nnew\n<!-- x:end --> b"
    for broken in ["", text + text]:
        with pytest.raises(ValueError, match="once each"):
            generate.between(broken, "x", "new")


def test_a_bar_in_a_cell_does_not_end_it(generate):
    assert generate.table(["a"], [["x | y"]]).splitlines()[-1] == "| x \\| y |"
