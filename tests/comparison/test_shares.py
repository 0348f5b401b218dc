import itertools
import time
from contextlib import nullcontext

import pytest
import torch

from lengthwise.comparison.shares import Share, train, warm_up
from lengthwise.models.language_model import LanguageModel
from lengthwise.training.failure import Diverged


def tiny() -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(vocab_size=16, dim=16, layers="min_gru + mlp")


def batches():
    return itertools.repeat(torch.arange(18).remainder(9).view(2, 9))


def test_a_share_of_seconds_is_kept():
    points = []
    begin = time.perf_counter()
    train(tiny(), batches(), Share(seconds=0.5), learning_rate=1e-2, context=nullcontext, on_progress=points.append)
    assert 0.5 <= points[-1].seconds <= time.perf_counter() - begin
    assert points[-1].fraction == 1.0


def test_a_share_of_tokens_is_exact_and_learns():
    points = []
    share = Share(tokens=100 * 16)
    rate = train(tiny(), batches(), share, learning_rate=1e-2, context=nullcontext, on_progress=points.append)
    assert points[-1].tokens == 1600
    assert points[-1].loss < 0.5 * points[0].loss
    assert rate > 0
    assert len(points) <= 61


def test_the_same_tokens_give_the_same_model():
    models = [tiny(), tiny()]
    for model in models:
        train(model, batches(), Share(tokens=160), learning_rate=1e-2, context=nullcontext, on_progress=lambda p: None)
    for ours, theirs in zip(*(m.parameters() for m in models), strict=True):
        assert torch.equal(ours, theirs)


def test_a_loss_that_is_not_finite_stops():
    model = tiny()
    with torch.no_grad():
        model.head.weight.fill_(float("nan"))
    with pytest.raises(Diverged, match="the loss became nan after 0 steps"):
        train(model, batches(), Share(tokens=160), learning_rate=1.0, context=nullcontext, on_progress=lambda p: None)


def test_warming_up_teaches_nothing():
    model = tiny()
    before = [p.clone() for p in model.parameters()]
    assert warm_up(model, next(batches()), nullcontext) > 0
    assert all(torch.equal(p, b) and p.grad is None for p, b in zip(model.parameters(), before, strict=True))
