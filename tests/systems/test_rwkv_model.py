import itertools

import pytest
import torch

from lengthwise.systems import rwkv_model


def test_the_start_is_that_of_the_paper():
    torch.manual_seed(0)
    model = rwkv_model.build(rwkv_model.layers(2), 16, vocab_size=64, learning_rate=1e-3)
    largest = model.embedding.weight.abs().max().item()
    assert 0.9e-3 < largest <= 1e-3
    # columns of length 0.5 * sqrt(64 / 16)
    torch.testing.assert_close(model.head.weight.T @ model.head.weight, torch.eye(16), rtol=0, atol=1e-5)
    narrow = rwkv_model.build(rwkv_model.layers(1), 16, vocab_size=8).head.weight
    torch.testing.assert_close(narrow @ narrow.T, 0.25 * torch.eye(8), rtol=0, atol=1e-5)


def test_every_branch_begins_silent():
    torch.manual_seed(0)
    model, tokens = rwkv_model.build(rwkv_model.layers(3), 16), torch.randint(256, (1, 9))
    embedded = model.stack.layers[0](model.embedding(tokens))[0]
    torch.testing.assert_close(model.hidden(tokens)[0], model.norm(embedded))


def test_training_learns_and_every_parameter_moves():
    torch.manual_seed(0)
    model = rwkv_model.build(rwkv_model.layers(2), 16, vocab_size=8)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    batch = (torch.arange(12)[None] + torch.arange(4)[:, None]) % 8
    losses = rwkv_model.train(model, itertools.repeat(batch), steps=120, learning_rate=2e-2)
    assert losses[0] == pytest.approx(2.08, abs=0.4)
    assert losses[-1] < 0.2
    still = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert still == set()
