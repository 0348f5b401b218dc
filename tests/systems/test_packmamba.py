import pytest
import torch

from lengthwise.models.language_model import LanguageModel
from lengthwise.systems import packmamba
from lengthwise.systems.system import Run
from lengthwise.training.packing import greedy


@pytest.fixture
def small(monkeypatch):
    """Sizes that take a moment."""
    for name, size in {"FUNCTIONS": 12, "LONGEST": 60, "BATCH": 4, "ROW": 128, "DIM": 16, "REPEATS": 1}.items():
        monkeypatch.setattr(packmamba, name, size)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LanguageModel(256, 16, packmamba.LAYERS, position="none")


def test_the_experiment_on_few_functions(small):
    told = []
    figures = list(packmamba.reproduce(Run(seeds=(0, 1), progress=lambda text, fraction: told.append(fraction))))
    assert [f.holds for f in figures[:4]] == [True] * 4
    assert figures[3].measured > 1e-3
    assert len(figures) == 9
    assert all(f.measured > 0 for f in figures[6:])
    assert len(told) == 2 * 3
    assert told == sorted(told)


def test_functions_are_source_text_clipped_and_of_the_seed(small):
    drawn = packmamba.draw(0)
    assert len(drawn) == 12
    assert all(16 <= len(s) <= 60 for s in drawn)
    assert all(bytes(s.tolist()).startswith((b"def ", b"async def ")) for s in drawn)
    assert all(torch.equal(a, b) for a, b in zip(drawn, packmamba.draw(0), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(drawn, packmamba.draw(1), strict=True))


def test_nested_functions_are_part_of_those_around_them():
    found = packmamba.functions()
    assert len(found) > 1000
    assert any(text.count(b"def ") > 1 for text in found)
    outer = next(text for text in found if b"\n    def " in text)
    assert outer.split(b"\n    ")[1] not in found


def test_each_way_takes_every_sequence_once(small):
    sizes = [50, 3, 20, 41, 9, 17]
    for steps in packmamba.ways(sizes).values():
        assert sorted(n for packing in steps for row in packing.rows for n in row) == list(range(6))
    assert packmamba.share_of_padding(packmamba.ways(sizes)["alone"]) == 0
    padded = packmamba.ways(sizes)["padded"]
    assert [packing.width for packing in padded] == [50, 17]
    assert packmamba.share_of_padding(padded) == pytest.approx(1 - sum(sizes) / (4 * 50 + 2 * 17))


def test_padded_batches_have_the_gradients_of_one_by_one(small, model):
    sequences = packmamba.draw(3)
    packings = packmamba.ways([len(s) for s in sequences])
    found = [
        packmamba.gradients(model.double(), packmamba.steps_of(packings[name], sequences, borders=False))
        for name in ("alone", "padded")
    ]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_the_leak_test_finds_a_leak(small, model):
    sequences = packmamba.draw(3)
    packing = greedy([len(s) for s in sequences], 128)
    packings = [packing.select([row]) for row in range(len(packing.rows))]
    closed, open_ = (
        packmamba.leak(model, packmamba.steps_of(packings, sequences, borders), packings) for borders in (True, False)
    )
    assert closed == 0
    assert open_ > 0
