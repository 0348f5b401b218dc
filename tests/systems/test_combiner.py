import pytest

from lengthwise.systems import combiner, cue
from lengthwise.systems.system import Run
from lengthwise.tasks.cue import Cue


def test_what_one_layer_reaches():
    assert combiner.reached("Combiner") == combiner.reached("dense") == 256
    assert combiner.reached("sparse") == 31


def test_entries_of_a_softmax():
    """On average half of a segment and one more, and half of the segments but the own."""
    assert combiner.entries() == 8.5 + 7.5


def test_the_experiment_on_few_steps(monkeypatch):
    monkeypatch.setattr(combiner, "STEPS", 2)
    monkeypatch.setattr(combiner, "TASK", Cue(length=40))
    monkeypatch.setattr(cue, "BATCH", 2)
    monkeypatch.setattr(cue, "EXAMPLES", 16)
    told = []
    figures = list(combiner.reproduce(Run(seeds=(10, 11), progress=lambda text, fraction: told.append(fraction))))
    assert len(figures) == 6
    assert figures[0].measured == 40
    assert figures[3].holds is False
    assert len(told) == 2 * 3 * 2
    assert told == sorted(told)


@pytest.mark.slow
def test_a_single_layer_names_a_cue_anywhere():
    accuracy = {
        name: cue.accuracy(combiner.LAYERS[name], combiner.TASK, 10, steps=combiner.STEPS)
        for name in ("Combiner", "sparse")
    }
    assert accuracy["Combiner"] >= 0.9
    assert accuracy["sparse"] <= 0.4
