import pytest
import torch

from lengthwise.mixers.routing_attention import RoutingAttention
from lengthwise.systems import routing_transformer as system
from lengthwise.systems.system import Run
from lengthwise.tasks.task import Example


def test_visible_is_what_the_mixer_attends_to():
    """A change of a token reaches exactly the outputs of those that see it."""
    torch.manual_seed(0)
    mixer = RoutingAttention(8, heads=1, clusters=3, members=4).double().eval()
    clusters = torch.randint(3, (1, 20, 1))
    mixer.assign = lambda z: clusters
    x = torch.randn(1, 20, 8, dtype=torch.float64)
    sees = system.visible(clusters, 4)[0, 0]
    for j in range(20):
        other = x.clone()
        other[0, j] += 1
        changed = ((mixer(other)[0] - mixer(x)[0])[0].abs() > 1e-12).any(-1)
        assert torch.equal(changed, sees[:, j])


def test_hashes_are_of_the_position_alone_and_stay():
    torch.manual_seed(0)
    part = system.HashedAttention(8, heads=2, routing_heads=2, clusters=5).train()
    a, b = (part.assign(torch.randn(2, 30, 2, 4)) for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(a[0], a[1])
    assert len(a.unique()) == 5


def test_together_counts_prompts_that_see_their_slot():
    """Two prompts of types 0 and 1, of which the first sees its slot."""
    prompts = system.TASK.prompts.start
    tokens = torch.tensor([[3, 8, 300, prompts, prompts + 1]])
    example = Example(tokens, tokens, tokens >= prompts)
    sees = torch.zeros(1, 2, 5, 5, dtype=torch.bool)
    sees[0, 1, 3, 0] = sees[0, 0, 4, 0] = True
    example = Example(tokens, tokens, torch.tensor([[False, False, False, True, True]]))
    assert system.together(sees, example) == 0.5


@pytest.mark.parametrize("name", system.ARMS)
def test_arms_differ_in_the_second_layer_alone(name):
    torch.manual_seed(0)
    model = system.LanguageModel(8, 64, system.ARMS[name], parts=system.PARTS)
    kinds = [type(layer.part).__name__ for layer in model.stack.layers]
    second = {"routing": "RoutingAttention", "local": "Attention", "hashed": "HashedAttention"}[name]
    assert kinds == ["Attention", "MLP", second, "MLP"]


def test_the_experiment_on_few_steps(monkeypatch):
    monkeypatch.setattr(system, "STEPS", 2)
    told = []
    figures = list(system.reproduce(Run(seeds=(10, 11), progress=lambda text, fraction: told.append(fraction))))
    assert len(figures) == 5
    assert not figures[0].holds
    assert figures[2].holds  # the last 32 of a cluster are at most 32 · 256 of 256 · 257 / 2
    assert all(0 <= f.measured <= 1 for f in figures[2:])
    assert len(told) == 4 * 2
    assert told == sorted(told)
