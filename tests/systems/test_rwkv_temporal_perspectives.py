import pytest
import torch

from lengthwise.models.perspectives import Perspectives
from lengthwise.systems import rwkv_temporal_perspectives as perspectives
from lengthwise.systems.system import Run


@pytest.fixture
def small(monkeypatch):
    """Sizes that take a moment."""
    arms = {name: (views, blend, steps // 300) for name, (views, blend, steps) in perspectives.ARMS.items()}
    windows = perspectives.held_out()[::100]
    for name, value in {"BASE_STEPS": 2, "BATCH": 2, "ARMS": arms, "held_out": lambda: windows}.items():
        monkeypatch.setattr(perspectives, name, value)


def test_the_experiment_on_few_steps(small):
    told = []
    figures = list(perspectives.reproduce(Run(seeds=(0, 1), progress=lambda text, fraction: told.append(fraction))))
    assert len(figures) == 5
    assert [f.holds for f in figures[:3]] == [True, True, False]
    assert told == [n / 16 for n in range(1, 17)]
    assert "mean of 2 seeds" in figures[2].name
    assert abs(figures[4].measured) < 1e-3  # views that are averaged stay equal, and learn what one view learns


def test_the_domains_share_no_module():
    base, prose, held_out = perspectives.domains()
    names = [{d.name for d in corpus.documents} for corpus in (base, prose, held_out)]
    assert not names[0] & names[1]
    assert not names[0] & names[2]
    assert not names[1] & names[2]
    assert all("a" <= name[0] <= "m" for name in names[0])
    assert all("n" <= name[0] <= "z" for name in names[1] | names[2])
    assert "ast.py" in names[0]
    assert len(prose) > perspectives.ARMS["three views"][2] * perspectives.BATCH * perspectives.LENGTH
    assert "def " in base.documents[0].tokens.tobytes().decode()
    windows = perspectives.held_out()
    assert len(held_out) - perspectives.LENGTH <= windows[:, 1:].numel() <= len(held_out)


def test_fine_tuning_changes_mixing_vectors_and_the_blend_alone(small):
    base = perspectives.train_base(0)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    for name, (views, blend, _) in perspectives.ARMS.items():
        model = perspectives.begin(base, name, 0)
        begun = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        perspectives.fine_tune(model, name, 0)
        changed = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, begun[key])}
        assert all("time_mix_" in key or "blend" in key for key in changed)
        assert len(changed) == 5 * 3 + (blend == "learned")
        (part,) = (module for module in model.modules() if isinstance(module, Perspectives))
        assert part.views == views
        if blend == "average" and views > 1:
            first = part.stack.layers[1].part.time_mix_key
            torch.testing.assert_close(first, first[:1].expand_as(first))
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())


@pytest.mark.parametrize(("views", "saved", "explained"), [(2.0, True, False), (2.2, True, True), (2.3, False, True)])
def test_compute_explains_a_gain_that_longer_training_has_too(views, saved, explained):
    bits = {"base": 2.5, "one view": 2.3, "three views": views, "one view, for longer": 2.1, perspectives.AVERAGED: 2.3}
    gain, over, averaged = perspectives.compared(bits, 3)
    assert (gain.holds, over.holds) == (saved, not explained)
    assert ("compute explains the gain" in over.note) == explained
    assert averaged.measured == 0
