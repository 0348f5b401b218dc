import torch

from lengthwise.systems import cue
from lengthwise.systems.system import Run
from lengthwise.tasks.cue import Cue


def test_variants_are_trained_on_their_seeds_and_told_of(monkeypatch):
    monkeypatch.setattr(cue, "BATCH", 2)
    monkeypatch.setattr(cue, "EXAMPLES", 16)
    told = []
    run = Run((3, 4), lambda text, fraction: told.append((text, fraction)))
    jobs = {"local": ("attention(heads=1, window=2)", (3, 4)), "dense": ("attention(heads=1)", (3,))}
    found = cue.medians(run, jobs, Cue(length=12), steps=2, share=0.5)
    assert set(found) == {"local", "dense"}
    assert all(0 <= value <= 1 for value in found.values())
    assert [text.split(":")[0] for text, _ in told] == ["local, seed 3"] * 2 + ["local, seed 4"] * 2 + [
        "dense, seed 3"
    ] * 2
    assert told[-1][1] == 0.5


def test_the_seed_decides(monkeypatch):
    monkeypatch.setattr(cue, "EXAMPLES", 8)
    losses = []
    for _ in range(2):
        cue.accuracy("attention(heads=1)", Cue(length=9), 10, steps=3, on_step=lambda step, loss: losses.append(loss))
    assert losses[:3] == losses[3:]
    assert torch.isfinite(torch.tensor(losses)).all()
