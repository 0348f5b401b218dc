from __future__ import annotations

import pytest
import torch
from torch import nn

from lengthwise.contract import SequenceModule
from lengthwise.models.language_model import LanguageModel
from lengthwise.training.auxiliary import auxiliary_loss
from lengthwise.training.fit import fit, next_token_loss


class Scaled(SequenceModule):
    """A part whose loss is the square of its one parameter."""

    receptive_field = 1

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1,), 3.0))

    def forward(self, x, state=None, layout=None):
        self.auxiliary = self.scale.square().sum() if self.training else None
        return 0 * x, None

    def state_nbytes(self, length):
        return 0


def model():
    torch.manual_seed(0)
    return LanguageModel(8, 8, "scaled + scaled", position="none", parts={"scaled": Scaled})


def test_what_all_parts_left_is_summed_and_taken_once():
    made, tokens = model().train(), torch.zeros(1, 4, dtype=torch.long)
    assert auxiliary_loss(made) == 0
    made(tokens)
    loss = auxiliary_loss(made)
    assert loss == 18
    loss.backward()
    assert all(layer.part.scale.grad == 6 for layer in made.stack.layers)
    assert auxiliary_loss(made) == 0
    made.eval()(tokens)
    assert auxiliary_loss(made) == 0


def test_fit_trains_on_it_and_tells_the_other_loss():
    made, tokens = model(), torch.randint(0, 8, (2, 9))
    expected = next_token_loss(made, tokens).item()
    losses = fit(made, iter([tokens] * 20), steps=20, learning_rate=0.1, warmup=1, weight_decay=0.0)
    assert losses[0] == pytest.approx(expected)
    assert all(layer.part.scale.abs().item() < 2.5 for layer in made.stack.layers)
