from functools import partial

import pytest
import torch

from lengthwise.mixers.state_control import Normalise, Window
from lengthwise.models.language_model import LanguageModel
from lengthwise.systems import stuffed_mamba
from lengthwise.systems.system import Run


@pytest.fixture
def small(monkeypatch):
    """Sizes that take a moment."""
    for name, size in {"TRAINED": 16, "LENGTH": 128, "LATE": 64, "WINDOWS": 4, "CAPACITIES": (32, 64)}.items():
        monkeypatch.setattr(stuffed_mamba, name, size)
    for name in ("collapse", "capacity"):
        monkeypatch.setattr(stuffed_mamba, name, partial(getattr(stuffed_mamba, name), steps=2))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LanguageModel(256, 16, "2*mamba2(head_dim=8, state_dim=4)", position="none").eval()


def test_the_experiment_on_few_steps(small):
    """Two steps teach nothing that could collapse, and no recall: all capacities are the least."""
    told = []
    figures = list(stuffed_mamba.reproduce(Run(seeds=(0,), progress=lambda text, fraction: told.append(fraction))))
    assert len(figures) == 6
    assert [f.holds for f in figures[-2:]] == [True, False]
    assert len(told) == 2 + 3 * 2
    assert told == sorted(told)


def test_late_is_compared_with_the_second_half_of_the_trained_length():
    nll = torch.ones(stuffed_mamba.LENGTH)
    nll[:32] = 50.0
    nll[2048:] = 1.5
    assert stuffed_mamba.late_over_early(nll) == pytest.approx(1.5)


@torch.no_grad()
def test_limits_are_percentiles_of_the_norms_of_states_within_the_trained_length(small, model):
    tokens = stuffed_mamba.corpus()[0].windows(4, 16)[:, :16]
    limits = stuffed_mamba.norms(model, 1.0)
    largest = torch.zeros(2, 4)
    for t in range(1, 17):
        _, state = model(tokens[:, :t])
        found = torch.stack([torch.linalg.matrix_norm(layer.memory).amax(0) for layer in state.layers])
        largest = torch.maximum(largest, found)
    torch.testing.assert_close(torch.stack(limits), largest)


@torch.no_grad()
def test_a_text_begun_anew_is_read_as_well_by_a_model_without_memory(small, model):
    """The window of one token and a convolution of one tap see no more than the byte itself."""
    torch.manual_seed(0)
    blind = LanguageModel(256, 16, "mamba2(kernel=1, state_dim=4, state_control=window(length=1))", position="none")
    plain = stuffed_mamba.nll_by_position(blind, 128, windows=4, longest=128)
    assert stuffed_mamba.against_restarts(blind, plain) == pytest.approx(1.0, abs=1e-5)


def test_every_layer_gets_its_own_control(model):
    stuffed_mamba.control(model, lambda layer: Normalise(limit=1.0 + layer))
    assert [mixer.state_control.limit for mixer in stuffed_mamba.mixers(model)] == [1.0, 2.0]
    stuffed_mamba.control(model, lambda _: Window(3))
    assert all(mixer.receptive_field == 6 for mixer in stuffed_mamba.mixers(model))


def test_lengths_of_recall_are_within_those_of_training():
    batches = stuffed_mamba.recall_batches(2, 0)
    lengths = {next(batches).tokens.shape[1] for _ in range(40)}
    assert len(lengths) > 20
    assert min(lengths) >= 16
    assert max(lengths) <= 256
