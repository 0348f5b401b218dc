import pytest
import torch

from lengthwise.models.vcc import Vcc
from lengthwise.systems import vcc as system
from lengthwise.systems.system import Run
from lengthwise.tasks.slots import SlotQuestion


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(system, "TASK", SlotQuestion(length=72, places=8, types=8, within=64))
    monkeypatch.setattr(system, "LESSONS", SlotQuestion(length=72, places=8, types=8, within=64, questions=8))
    monkeypatch.setattr(system, "STEPS", 2)
    monkeypatch.setattr(system, "MORE_STEPS", 2)
    monkeypatch.setattr(system, "LONG", 136)
    monkeypatch.setattr(system, "FINE", 2)
    torch.manual_seed(10)


def test_a_compressed_model_shares_its_weights_and_leaves_the_full_one_alone(tiny):
    model = system.reader()
    short = system.compressed(model)
    assert {id(p) for p in short.parameters()} == {id(p) for p in model.parameters()}
    assert len(model.encoder.stack.layers) == 6
    assert [type(layer).__name__ for layer in short.encoder.stack.layers] == ["Residual", "Residual", "Vcc"]
    example = system.TASK.batch(3)
    everything = system.compressed(model, fine=99)
    everything.encoder.stack.layers[-1].eps = 0.0
    answers = slice(system.TASK.answers.start, system.TASK.answers.stop)
    models = (model.eval(), everything, short)
    logits = [system.TASK.logits(m, example)[example.mask][:, answers] for m in models]
    torch.testing.assert_close(logits[0], logits[1], atol=1e-5, rtol=1e-5)
    assert (logits[0] - logits[2]).abs().max() > 1e-6


def test_the_share_kept_counts_blocks_in_full_and_places(tiny, monkeypatch):
    model = system.reader()
    assert system.share_kept(system.compressed(model, fine=99)) == 1.0
    none = system.share_kept(system.compressed(model, fine=0))
    some = system.share_kept(system.compressed(model, fine=2))
    assert 0.0 < none < some < 1.0  # 7 of 64 tokens of the context fill the places
    monkeypatch.setattr(Vcc, "split", lambda self, z, seen: (z.argsort(1)[:, :0], z.argsort(1)))
    assert system.share_kept(system.compressed(model)) == none


def test_training_goes_on_where_accuracy_is_low(tiny, monkeypatch):
    for reached, steps in ((0.95, 2), (0.5, 4)):
        told = []
        monkeypatch.setattr(system, "accuracy", lambda model, reached=reached: reached)
        system.train_full(10, lambda step, loss, told=told: told.append(step))
        assert len(told) == steps


def test_the_experiment_on_few_steps(tiny):
    told = []
    figures = list(system.reproduce(Run(seeds=(10,), progress=lambda text, fraction: told.append(fraction))))
    assert len(figures) == 8
    assert all(f.measured >= 0 for f in figures)
    assert told == sorted(told)
    assert 0 < told[-1] <= 1


def test_rows_are_the_counted_ones():
    short = system.compressed(system.reader())
    rows = short.encoder.stack.layers[-1].rows(system.TASK.length - system.TASK.places + 1)
    assert rows == 8 * 16 + 24 + 16
