import itertools
import math

import pytest
import torch
from torch import nn

from lengthwise.errors import InputError
from lengthwise.training.fit import bounded_next_token_loss, fit, logit_penalty, next_token_loss


class Bigram(nn.Module):
    """Logits that depend on the present token alone."""

    def __init__(self, vocab=7):
        super().__init__()
        self.table = nn.Embedding(vocab, vocab)

    def forward(self, tokens, state=None, layout=None):
        return self.table(tokens), None


def test_next_token_loss_is_the_mean_cross_entropy():
    torch.manual_seed(0)
    model = Bigram().double()
    tokens = torch.randint(7, (3, 6))
    expected = 0.0
    for row in tokens.tolist():
        for before, after in itertools.pairwise(row):
            expected -= torch.log_softmax(model.table.weight[before], 0)[after].item()
    assert next_token_loss(model, tokens).item() == pytest.approx(expected / 15, rel=1e-12)


def test_half_precision_logits_are_summed_in_float32():
    model = Bigram().bfloat16()
    assert next_token_loss(model, torch.randint(7, (2, 5))).dtype == torch.float32


def test_the_penalty_pulls_the_largest_logit_of_each_place_alone():
    logits = torch.tensor([[[1.0, 3.0, 2.0], [-4.0, -5.0, -6.0]]], dtype=torch.float64, requires_grad=True)
    penalty = logit_penalty(logits)
    assert penalty.item() == pytest.approx(0.5e-4 * (9 + 16) / 2, rel=1e-12)
    (slope,) = torch.autograd.grad(penalty, [logits])
    expected = torch.tensor([[[0.0, 3.0, 0.0], [-4.0, 0.0, 0.0]]], dtype=torch.float64) * 1e-4 / 2
    torch.testing.assert_close(slope, expected)


def test_the_bounded_loss_is_both():
    torch.manual_seed(0)
    model, tokens = Bigram().double(), torch.randint(7, (3, 6))
    expected = next_token_loss(model, tokens) + logit_penalty(model(tokens[:, :-1])[0])
    torch.testing.assert_close(bounded_next_token_loss(model, tokens), expected)


def test_fit_learns_a_deterministic_successor():
    torch.manual_seed(0)
    batch = (torch.arange(20)[None] + torch.arange(4)[:, None]) % 7
    seen = []
    losses = fit(
        Bigram(), itertools.repeat(batch), steps=150, learning_rate=0.3, warmup=5, weight_decay=0.0,
        on_step=lambda step, loss: seen.append((step, loss)),
    )  # fmt: skip
    assert seen == list(enumerate(losses))
    assert losses[0] > 1.0
    assert losses[-1] < 0.05


def test_fit_stops_before_a_loss_that_is_not_finite_changes_anything():
    model = Bigram()
    before = model.table.weight.detach().clone()
    with pytest.raises(InputError, match="nan at step 0"):
        fit(
            model, itertools.repeat(0), steps=2, learning_rate=1.0, warmup=1,
            loss=lambda model, batch: model.table.weight.sum() * math.nan,
        )  # fmt: skip
    assert torch.equal(model.table.weight, before)


def test_fit_says_when_batches_end():
    batches = iter([torch.zeros(1, 4, dtype=torch.long)] * 3)
    with pytest.raises(InputError, match="after 3 of 5 steps"):
        fit(Bigram(), batches, steps=5, learning_rate=0.1, warmup=1)
