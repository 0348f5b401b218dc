from itertools import repeat

import pytest
import torch

from lengthwise.models.encoder import Encoder
from lengthwise.models.language_model import LanguageModel
from lengthwise.systems.position_probe import hidden_states, mean_absolute_distances

LAYERS = "2*(attention(heads=2) + mlp)"


@torch.no_grad()
def test_hidden_states_of_every_layer():
    model = LanguageModel(256, 16, LAYERS, "none")
    tokens = torch.randint(256, (3, 7))
    hidden = hidden_states(model, tokens)
    assert hidden.shape == (3, 3, 7, 16)
    assert torch.equal(hidden[0], model.embedding(tokens))
    after_one = model.stack.layers[1](model.stack.layers[0](hidden[0])[0])[0]
    assert torch.equal(hidden[1], after_one)
    assert torch.equal(model.norm(hidden[-1]), model.hidden(tokens)[0])
    assert not any(module._forward_hooks for module in model.modules())


def test_a_probe_reads_positions_where_they_are_and_only_there():
    torch.manual_seed(0)
    length = 16
    with_positions = LanguageModel(256, 16, LAYERS, f"learned(length={length})")
    torch.nn.init.normal_(with_positions.position.weight, std=3)
    without = Encoder(256, 16, LAYERS, "none")
    tokens = torch.randint(256, (64, length))
    settings = {"steps": 80, "learning_rate": 1e-2}
    found = mean_absolute_distances(with_positions, repeat(tokens[:32]), tokens[32:], **settings)
    assert found[0] < 0.5
    lost = mean_absolute_distances(without, repeat(tokens[:32]), tokens[32:], **settings)
    assert lost == pytest.approx([length / 3] * 3, rel=0.25)
