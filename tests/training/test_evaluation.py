import math

import pytest
import torch

from lengthwise.errors import InputError
from lengthwise.models import LanguageModel
from lengthwise.training.evaluation import doubling_ranges, evaluate_windows, summarise, token_losses
from lengthwise.training.fit import next_token_loss
from tests.training.runs import LAYERS

CPU = torch.device("cpu")


def model(layers=LAYERS):
    torch.manual_seed(0)
    return LanguageModel(vocab_size=16, dim=16, layers=layers)


def test_losses_in_chunks_equal_those_of_the_whole_and_their_mean_is_the_training_loss():
    net, tokens = model().double(), torch.randint(16, (3, 24))
    whole = token_losses(net, tokens)
    assert whole.shape == (3, 23)
    assert torch.allclose(token_losses(net, tokens, chunk=5), whole, rtol=0, atol=1e-12)
    assert whole.mean().item() == pytest.approx(next_token_loss(net, tokens).item(), rel=1e-12)


def test_bits_per_byte_of_a_uniform_model_are_the_bits_of_its_vocabulary():
    net = model()
    torch.nn.init.zeros_(net.head.weight)
    windows = torch.randint(16, (5, 41))
    nats = evaluate_windows(net, windows, batch=2, device=CPU)
    result = summarise(nats, bytes_per_token=2.0)
    assert result.bits_per_byte == pytest.approx(4 / 2, rel=1e-6)
    assert result.standard_error == pytest.approx(0, abs=1e-6)
    assert [(r.begin, r.end) for r in result.by_position] == [(0, 16), (16, 32), (32, 40)]


def test_standard_error_is_that_of_the_mean_over_contexts():
    nats = torch.tensor([[1.0, 1.0], [2.0, 2.0], [6.0, 6.0]]) * math.log(2)
    result = summarise(nats, 1.0)
    assert result.bits_per_byte == pytest.approx(3)
    assert result.standard_error == pytest.approx(math.sqrt(7) / math.sqrt(3))  # variance ((−2)² + (−1)² + 3²) / 2
    assert summarise(nats[:1], 1.0).standard_error is None


def test_ranges_cover_every_position_once():
    for length in (1, 15, 16, 17, 100):
        ranges = list(doubling_ranges(length))
        assert [p for begin, end in ranges for p in range(begin, end)] == list(range(length))


def test_a_model_that_is_not_finite_says_from_which_position():
    net = model("swiglu")
    with torch.no_grad():
        net.embedding.weight[3] = torch.nan
    windows = torch.zeros(2, 9, dtype=torch.long)
    windows[1, 4] = 3
    with pytest.raises(InputError, match="from position 4"):
        evaluate_windows(net.train(), windows, batch=1, device=CPU)
    assert net.training
