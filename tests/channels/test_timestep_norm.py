import pytest
import torch

from lengthwise.channels.timestep_norm import TimestepNorm, default_groups
from lengthwise.contract import Layout
from lengthwise.errors import InputError
from lengthwise.models.language_model import LanguageModel
from lengthwise.ops.timestep_norm import timestep_norm_reference


def test_weights_are_offsets_from_one():
    torch.manual_seed(0)
    norm, x = TimestepNorm(8, groups=2), torch.randn(2, 9, 8)
    first = torch.zeros(2, dtype=torch.long), torch.zeros(2, 2), torch.ones(2, 2)
    plain, _ = timestep_norm_reference(x, torch.ones(8), torch.zeros(8), first)
    torch.testing.assert_close(norm(x)[0], plain)
    with torch.no_grad():
        norm.weight.fill_(0.5)
        norm.bias.fill_(2.0)
    torch.testing.assert_close(norm(x)[0], 1.5 * plain + 2)


def test_a_group_of_one_channel_needs_a_prior():
    norm = TimestepNorm(4, groups=4)
    assert norm.prior == 2
    y, _ = norm(100 * torch.randn(1, 1, 4))
    assert (y.abs() < 3).all()
    with pytest.raises(InputError, match="whose first variance is 0, prior must be at least 2, got 1"):
        TimestepNorm(4, groups=4, prior=1)


def test_padding_gives_nothing():
    layout = Layout.padded([3, 5])
    y, _ = TimestepNorm(8)(torch.randn(2, 5, 8), None, layout)
    assert (y[layout.padding] == 0).all()
    assert (y[~layout.padding] != 0).all()


@pytest.mark.parametrize(("dim", "groups"), [(1, 1), (8, 1), (96, 3), (100, 4), (1024, 32), (2048, 64)])
def test_groups_are_as_near_to_32_channels_as_the_width_allows(dim, groups):
    assert default_groups(dim) == TimestepNorm(dim).groups == groups


def test_a_model_that_ends_with_it_has_no_other_norm():
    model = LanguageModel(16, 8, "mlp + timestep_norm")
    assert isinstance(model.norm, torch.nn.Identity)


@pytest.mark.parametrize("groups", [0, 3])
def test_groups_that_dont_divide(groups):
    with pytest.raises(InputError, match=f"groups must divide dim: got groups={groups} and dim=8; 1 would do"):
        TimestepNorm(8, groups=groups)


def test_a_negative_prior():
    with pytest.raises(InputError, match=r"^prior must be at least 0, got -1"):
        TimestepNorm(8, prior=-1)
