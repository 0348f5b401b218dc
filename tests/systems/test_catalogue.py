"""The catalogue, the table of what is built, and the mapping over both."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import lengthwise as lw
import lengthwise.systems
from lengthwise.errors import InputError
from lengthwise.systems import SYSTEMS
from lengthwise.systems.catalogue import CATALOGUE
from lengthwise.systems.parts import find_part
from lengthwise.systems.runner import summary
from lengthwise.systems.system import System

BUILT = pytest.mark.parametrize("key", SYSTEMS)


def test_the_catalogue_has_every_system_once_with_title_and_paper():
    assert len(CATALOGUE) == 119
    assert list(CATALOGUE) == sorted(CATALOGUE)
    assert len({e.arxiv for e in CATALOGUE.values()}) == 119
    for key, entry in CATALOGUE.items():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", key)
        assert re.fullmatch(r"\d{4}\.\d{4,5}", entry.arxiv)
        assert 0 <= entry.year - 2000 - int(entry.arxiv[:2]) <= 1
        assert entry.title
        assert entry.short
        assert entry.link.endswith(entry.arxiv)


def test_the_table_of_built_systems_names_their_files():
    assert list(SYSTEMS) == sorted(SYSTEMS)
    for key, module in SYSTEMS.items():
        assert key in CATALOGUE
        assert module == f"lengthwise.systems.{key.replace('-', '_')}"


@BUILT
def test_a_built_system_agrees_with_the_catalogue_and_names_parts_that_exist(key):
    system = lengthwise.systems.find_system(key)
    assert isinstance(system, System)
    assert (system.key, system.arxiv) == (key, CATALOGUE[key].arxiv)
    assert system.claim
    assert system.parts
    assert system._experiment is not None
    for name in system.parts:
        assert summary(find_part(name)), f"{name} has no docstring"
    if system.expression:
        assert sum(p.numel() for p in lw.LanguageModel(vocab_size=16, dim=96, layers=system.expression).parameters())


def test_systems_is_a_mapping():
    assert set(lw.systems) == set(lw.systems.keys()) == set(SYSTEMS)
    assert len(lw.systems) == len(SYSTEMS)
    assert "mamba" in lw.systems
    assert "yoso" not in lw.systems
    assert lw.systems["mamba"].key == "mamba"
    assert dict(lw.systems.items())["mamba"] is lw.systems["mamba"]
    assert [s.key for s in lw.systems.values()] == list(SYSTEMS)


@pytest.mark.parametrize(
    ("key", "message"),
    [("mambo", "did you mean mamba"), ("yoso", "isn't built yet"), ("", "unknown system")],
)
def test_a_key_that_is_unknown_or_not_built_is_one_sentence(key, message):
    with pytest.raises(InputError, match=message) as caught:
        lw.systems[key]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["mixers.nothing", "nothing", "ops.nothing", "mixers."])
def test_an_unknown_part_is_one_sentence(name):
    with pytest.raises(InputError, match="no part"):
        find_part(name)


def test_listing_the_systems_does_not_import_torch():
    code = (
        "import sys; from lengthwise.systems.runner import list_systems, show; list_systems(); show('yoso'); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stderr
    assert "119 systems" in done.stdout
