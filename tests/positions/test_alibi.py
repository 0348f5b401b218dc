import pytest
import torch

from lengthwise.positions.alibi import ALiBi, slopes

transformers_bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")


def test_slopes_of_powers_of_two():
    assert slopes(8).tolist() == [2.0**-n for n in range(1, 9)]
    assert slopes(1).tolist() == [2.0**-8]


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 71])
def test_slopes_of_transformers(heads):
    mask = torch.ones(1, 6)
    theirs = transformers_bloom.build_alibi_tensor(mask, heads, torch.float32).view(heads, 6)
    torch.testing.assert_close(slopes(heads).float(), theirs[:, 1], rtol=1e-6, atol=0)


def test_bias_up_to_a_constant_of_the_row_is_that_of_transformers():
    """Theirs counts keys from the left, which the softmax can't tell from the distance to the query."""
    heads, length = 6, 9
    theirs = transformers_bloom.build_alibi_tensor(torch.ones(1, length), heads, torch.float32)
    causal = torch.ones(length, length).triu(1).bool()
    ours = ALiBi().bias(torch.arange(length), torch.arange(length), heads).written()[0]
    torch.testing.assert_close(
        ours.masked_fill(causal, -torch.inf).softmax(-1),
        theirs.expand(heads, length, length).masked_fill(causal, -torch.inf).softmax(-1),
    )


def test_the_bias_looks_at_distances_and_counts_both_directions():
    alibi = ALiBi()
    near = alibi.bias(torch.arange(4), torch.arange(4), 2).written()
    assert torch.equal(near, alibi.bias(torch.arange(4) + 100, torch.arange(4) + 100, 2).written())
    assert torch.equal(near, near.transpose(-1, -2))
    assert near[0, 0].tolist() == [[-abs(i - j) / 16 for j in range(4)] for i in range(4)]


def test_it_holds_nothing():
    assert ALiBi().state_dict() == {}
