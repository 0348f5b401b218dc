"""What a token decoded alone adds to its logits is what it would add among others."""

import copy

import pytest
import torch

from lengthwise.positions import FIRE, T5, ALiBi, Cable, Randomised, SeqPE

CPU = torch.device("cpu")
HEADS = 4
MADE = {
    "alibi": ALiBi,
    "t5": lambda: T5(heads=HEADS),
    "t5 both ways": lambda: T5(heads=HEADS, causal=False),
    "fire": lambda: FIRE(heads=HEADS, length=20),
    "fire both ways": lambda: FIRE(heads=HEADS, length=20, causal=False),
    "fire without a hidden unit": lambda: zeroed(FIRE(heads=HEADS, width=3)),
    "seqpe": lambda: SeqPE(32, heads=HEADS, width=16, positions=2000),
    "randomised": lambda: Randomised(ALiBi(), length=4000),
}


def zeroed(fire):
    with torch.no_grad():
        fire.hidden_weight[1] = 0
    return fire


def both(position, keys):
    places = torch.arange(keys)[None]
    asked = position.bias(places[:, -1:], places, HEADS), position.last_bias(keys, HEADS, CPU)
    return [bias.written() for bias in asked]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MADE)
def test_it_is_the_bias_of_the_last_query(name, dtype):
    torch.manual_seed(0)
    position = MADE[name]().to(dtype).eval()
    # float32 rounds the logarithm and the quotient of FIRE in another order.
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    with torch.no_grad():
        for keys in (1, 2, 5, 40, 41, 900, 7):
            slow, fast = both(position, keys)
            torch.testing.assert_close(fast, slow, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["t5", "fire", "seqpe"])
def test_changed_weights_are_seen_and_copies_have_their_own(name):
    torch.manual_seed(0)
    position = MADE[name]().eval()
    with torch.no_grad():
        before = both(position, 9)[1]
        other = copy.deepcopy(position)
        for parameter in position.parameters():
            parameter.mul_(1.5)
        slow, fast = both(position, 9)
        torch.testing.assert_close(fast, slow)
        assert (fast - before).abs().max() > 1e-4
        torch.testing.assert_close(both(other, 9)[1], before)


@pytest.mark.parametrize("name", ["alibi", "t5", "fire", "seqpe"])
def test_it_serves_a_graph_after_inference(name):
    torch.manual_seed(0)
    position = MADE[name]().eval()
    with torch.inference_mode():
        kept = both(position, 9)[1].clone()
    q = torch.ones(9, requires_grad=True)
    slow, fast = both(position, 9)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(fast.detach(), kept)
    (fast * q).sum().backward()
    assert q.grad is not None
    assert all(p.grad is not None for p in position.parameters() if name in ("t5", "fire"))


def test_cable_reads_its_sums_where_they_lie():
    cable = Cable(8, heads=2)
    sums = torch.randn(3, 7, 2)
    places = torch.arange(7)[None]
    given = sums[:, -1:], sums
    expected = cable.bias(places[:, -1:], places, 2, given).written()
    found = cable.last_bias(7, 2, CPU, given)
    assert torch.equal(found.written(), expected)
    assert found.g.data_ptr() == sums.data_ptr()
