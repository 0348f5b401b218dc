import pytest
import torch

from lengthwise.models.language_model import LanguageModel
from lengthwise.systems import megalodon
from lengthwise.systems.experiments import parameters
from lengthwise.systems.system import Run

ALL = {**megalodon.LAYERS, **megalodon.ABLATIONS}


def build(layers):
    torch.manual_seed(0)
    return LanguageModel(256, megalodon.DIM, layers, position="rope", parts=megalodon.PARTS)


def test_all_models_are_of_one_size():
    sizes = {name: parameters(build(layers)) for name, layers in ALL.items()}
    assert max(sizes.values()) / min(sizes.values()) < 1.05


@torch.no_grad()
@pytest.mark.parametrize(
    ("layers", "reaches"),
    [
        (megalodon.LAYERS["megalodon"], True),
        (megalodon.LAYERS["chunks"], False),
        (megalodon.LAYERS["full"], True),
        (megalodon.ABLATIONS["without the two-hop residual"], True),
    ],
)
def test_who_reads_what_is_chunks_away(layers, reaches):
    """Without the average, the statistics of the norm still carry something."""
    model, tokens = build(layers).eval(), torch.randint(256, (1, 200))
    changed = tokens.clone()
    changed[:, :64] = torch.randint(256, (1, 64))
    after = (model(tokens)[0] - model(changed)[0])[:, 150:].abs().max().item()
    assert (after > 1e-4) == reaches


@torch.no_grad()
def test_without_the_average_there_is_no_average():
    torch.manual_seed(0)
    mixer = megalodon.WithoutAverage(8, chunk=4)
    n = torch.randn(1, 6, 8)
    assert torch.equal(mixer.averaged(n, None, None)[0], n)
    assert mixer(n)[1].average is None


def test_linear_maps_begin_as_in_the_paper():
    model = build(megalodon.LAYERS["megalodon"])
    megalodon.initialise(model)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            expected = (3 * module.in_features) ** -0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05)


def test_the_experiment_on_few_steps(monkeypatch):
    for name, size in {"STEPS": 2, "LENGTH": 16, "LONG": 64, "BATCH": 2, "WINDOWS": 2}.items():
        monkeypatch.setattr(megalodon, name, size)
    told = []
    figures = list(megalodon.reproduce(Run(seeds=(0,), progress=lambda text, fraction: told.append(fraction))))
    assert len(figures) == 9
    assert [f.holds is None for f in figures] == [False] * 6 + [True] * 3
    assert figures[5].name.startswith("largest state within 64 tokens over that within 16")
    assert len(told) == 5 * 2
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1)


@torch.no_grad()
def test_the_largest_state_within_a_length_is_that_before_the_last_token():
    models = {name: build(layers) for name, layers in megalodon.LAYERS.items()}
    ours, theirs = megalodon.states(models)
    assert ours.measured == 1
    assert ours.holds
    assert theirs.measured == pytest.approx(4095 / 511)
    assert int(ours.note.split()[0]) == max(models["megalodon"].state_nbytes(n) for n in range(64))
