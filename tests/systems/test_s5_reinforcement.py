import pytest
import torch

from lengthwise.contract import Layout
from lengthwise.mixers.s5 import S5
from lengthwise.systems import s5_reinforcement as s5
from lengthwise.systems.system import Run


def test_a_scan_is_the_loop_and_masking_the_input_is_not():
    found = s5.differences(seed=10, length=40)
    assert found["loop"] < 1e-5
    assert found["cuts"] < 1e-5
    assert found["masked"] > 1e-2


def test_the_loop_notices_a_missing_reset():
    """What the loop is compared with could not be a scan that never resets."""
    layer = S5(s5.DIM, state_dim=s5.STATE_DIM)
    u, begins = s5.rollouts(64, seed=10)
    _, state = layer(u)
    assert begins.any()
    with torch.no_grad():
        stepped = s5.step_by_step(layer, u, state, begins)
        assert s5.difference(stepped, layer(u, state)) > 1e-2
        assert s5.difference(stepped, layer(u, state, Layout.begun(begins))) < 1e-5


def test_rollouts_are_of_the_seed_and_hold_many_episodes():
    (u, begins), (again, _), (other, _) = (s5.rollouts(2048, seed) for seed in (10, 10, 11))
    assert torch.equal(u, again)
    assert not torch.equal(u, other)
    assert begins.float().mean().item() == pytest.approx(1 / s5.EPISODE, rel=0.2)  # 512 of 16,384; 4 deviations


def test_the_cell_forgets_where_an_episode_begins():
    torch.manual_seed(0)
    memory = s5.GRUMemory(4)
    u = torch.randn(2, 6, 4)
    begins = torch.zeros(2, 6, dtype=torch.bool)
    begins[:, 3] = True
    torch.testing.assert_close(memory(u, begins)[:, 3:], memory(u[:, 3:], begins[:, :3] & False))
    assert not torch.allclose(memory(u, begins)[:, 3:], memory(u, begins & False)[:, 3:])


def test_the_experiment_on_a_short_rollout(monkeypatch):
    monkeypatch.setattr(s5, "ROLLOUT", 32)
    monkeypatch.setattr(s5, "LONG", 64)
    figures = list(s5.reproduce(Run(seeds=(10, 11))))
    assert [f.holds for f in figures[:3]] == [True, True, True]
    assert figures[3].measured > 0
