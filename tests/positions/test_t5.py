import pytest
import torch

from lengthwise.errors import InputError
from lengthwise.positions.t5 import T5, bucket

t5 = pytest.importorskip("transformers.models.t5.modeling_t5")


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 20), (64, 1000)])
def test_buckets_of_transformers(causal, buckets, max_distance):
    distance = torch.arange(-2000, 2001)
    theirs = t5.T5Attention._relative_position_bucket(distance, not causal, buckets, max_distance)
    assert torch.equal(bucket(distance, buckets, max_distance, causal=causal), theirs)


def test_each_near_distance_has_a_bucket_of_its_own():
    distance = -torch.arange(200)
    found = bucket(distance, 32, 128, causal=True)
    assert found[:16].tolist() == list(range(16))
    assert found[128:].unique().tolist() == [31]
    assert (found.diff() >= 0).all()


def test_bias_is_read_from_the_table():
    position = T5(heads=3)
    bias = position.bias(torch.tensor([10, 11]), torch.tensor([0, 9, 10, 11]), 3).written()
    assert bias.shape == (1, 3, 2, 4)
    assert torch.equal(bias[0, :, 0, 1], position.weight[1])
    assert torch.equal(bias[0, :, 1, 0], position.weight[11])
    assert torch.equal(bias[0, :, 0, 3], position.weight[0])


def test_the_table_learns_and_is_saved():
    position = T5(heads=2, causal=False)
    position.bias(torch.arange(3), torch.arange(3), 2).written().sum().backward()
    assert position.weight.grad.sum() == 2 * 9
    again = T5(heads=2, causal=False)
    again.load_state_dict(position.state_dict())
    assert torch.equal(again.weight, position.weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "heads=4"),
        ({"heads": 0}, "at least 1"),
        ({"heads": 2, "buckets": 7}, "even"),
        ({"heads": 2, "buckets": 2, "causal": False}, "at least 4"),
        ({"heads": 2, "max_distance": 16}, "more than 16"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        T5(**settings)


def test_attention_with_other_heads_is_refused():
    with pytest.raises(InputError, match=r"t5\(heads=8\)"):
        T5(heads=4).bias(torch.arange(3), torch.arange(3), 8)
