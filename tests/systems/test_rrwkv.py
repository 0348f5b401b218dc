from itertools import pairwise

import pytest
import torch

from lengthwise.mixers.rrwkv import RRWKV
from lengthwise.systems import rrwkv, rwkv_model
from lengthwise.systems.experiments import parameters
from lengthwise.systems.system import Run
from tests.stirred import stir


@pytest.fixture
def small(monkeypatch):
    """Sizes that take a moment."""
    for name, size in {"STEPS": 2, "BATCH": 2, "GAPS": (5, 9, 40)}.items():
        monkeypatch.setattr(rrwkv, name, size)


def test_the_experiment_on_few_steps(small):
    """Two steps teach nothing, and the limit to RWKV-4 holds."""
    told = []
    figures = list(rrwkv.reproduce(Run(seeds=(0,), progress=lambda text, fraction: told.append(fraction))))
    assert [f.holds for f in figures] == [False, None, None, None, None, None, True]
    assert figures[0].note == "not reproduced"
    assert told == [n / 6 for n in range(1, 7)]


def test_the_widened_baseline_is_the_nearest_in_parameters():
    ours, _, wide = (parameters(rrwkv.build(name)) for name in rrwkv.ARMS)
    layers, width = rrwkv.ARMS["RWKV-4, widened"]
    near = {dim: parameters(rwkv_model.build(layers, dim, vocab_size=32)) for dim in range(width - 3, width + 4)}
    assert min(near, key=lambda dim: abs(near[dim] - ours)) == width
    assert abs(wide / ours - 1) < 0.01


@pytest.mark.parametrize(
    ("ours", "plain", "wide", "measured"),
    [
        ((1.0, 0.9, 0.5), (1.0, 0.8, 0.3), (1.0, 0.7, 0.5), 0.8 - 2.2 / 3),  # the better one is the widened
        ((1.0, 0.96, 0.5), (1.0, 0.96, 0.3), (0.9, 0.7, 0.2), 0.2),  # both solve what was trained
        ((1.0, 0.96, 0.5), (0.95, 0.96, 0.3), (0.9, 0.7, 0.2), 2.46 / 3 - 2.21 / 3),
    ],
)
def test_the_gain_is_over_the_better_baseline(ours, plain, wide, measured):
    figure = rrwkv.gain({"RRWKV": list(ours), "RWKV-4": list(plain), "RWKV-4, widened": list(wide)})
    assert figure.measured == pytest.approx(measured)
    assert figure.holds == (measured >= 0.05)
    assert (figure.note == "not reproduced") == (measured < 0.05)


@torch.no_grad()
def test_the_limit_is_compared_with_mediums_that_could_weigh(small):
    """The comparison would see mediums that count: their weights are the model's own, only their keys are far down."""
    torch.manual_seed(0)
    plain = stir(rrwkv.build("RWKV-4").eval(), 0.1)
    assert rrwkv.apart_without_mediums(plain) <= 1e-5
    model = rrwkv.build("RRWKV").eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    tokens = rrwkv.TASK.batch(2).tokens
    assert (model(tokens)[0] - plain(tokens)[0]).abs().max() > 1e-5
    assert all(m.mediums.interval == 16 for m in model.modules() if isinstance(m, RRWKV))


@torch.no_grad()
def test_the_loss_is_that_of_the_answer_and_a_little_of_what_is_not_noise():
    example = rrwkv.TASK.batch(3, length=20)

    class Guess(torch.nn.Module):
        def __init__(self, answer, others):
            super().__init__()
            self.answer, self.others = answer, others

        def forward(self, tokens):
            logits = torch.zeros(*tokens.shape, 32)
            shown = torch.nn.functional.one_hot(tokens[:, 1:], 32) * ~rrwkv.TASK.is_noise(tokens[:, 1:, None])
            logits[:, :-1] = self.others * shown
            logits[:, -1] = self.answer * torch.nn.functional.one_hot(example.targets[:, -1], 32)
            return logits, None

    losses = [float(rrwkv.objective(Guess(*sure), example)) for sure in ((0.0, 0.0), (0.0, 9.0), (9.0, 9.0))]
    uniform = torch.tensor(32.0).log().item()
    assert losses[0] == pytest.approx(1.1 * uniform, rel=1e-5)
    assert losses[1] == pytest.approx(uniform, rel=1e-2)
    assert losses[2] < 0.02
    assert all(a > b for a, b in pairwise(losses))
