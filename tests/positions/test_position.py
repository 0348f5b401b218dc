import math

import pytest
import torch

from lengthwise.errors import InputError
from lengthwise.positions import POSITIONS, Position
from lengthwise.positions.alibi import ALiBi
from lengthwise.positions.position import HOOKS, angles

BUILT = {"learned": {"dim": 8}, "grid": {"dim": 8}, "t5": {"heads": 4}}
BUILT |= {"fire": {"heads": 4, "length": 2}, "cable": {"dim": 8, "heads": 4}}
BUILT |= {"seqpe": {"dim": 8, "heads": 4, "width": 16}, "hard_alibi": {"heads": 4}, "randomised": {"position": ALiBi()}}


def make(name: str) -> Position:
    return POSITIONS[name](**BUILT.get(name, {}))


def bias_of(position, *places):
    """The bias of 4 heads, with sums that are the places themselves where it reads any."""
    rows = (p if p.ndim == 2 else p[None] for p in places)
    sums = tuple(p.float()[..., None].expand(-1, -1, 4) for p in rows)
    return position.bias(*places, 4, sums if position.has("steps") else None)


@pytest.mark.parametrize("name", POSITIONS)
def test_hooks_named_are_the_hooks_written(name):
    position = make(name)
    for hook in HOOKS:
        # One that wraps another has the hooks of that one.
        written = getattr(type(getattr(position, "position", position)), hook) is not getattr(Position, hook)
        assert position.has(hook) == written or (name == "seqpe" and not position.has(hook))  # by its use


@pytest.mark.parametrize("name", POSITIONS)
def test_hooks_not_named_change_nothing(name):
    position = make(name)
    x, places = torch.randn(2, 5, 8), torch.arange(5)
    q, k = torch.randn(2, 5, 4, 2), torch.randn(2, 5, 2, 2)
    if not position.has("embed"):
        assert position.embed(x, places) is x
    if not position.has("rotate"):
        assert position.rotate(q, k, places, places) == (q, k)
    if not position.has("bias"):
        assert bias_of(position, places, places) is None
    if not position.has("pattern"):
        assert position.pattern() is None


@pytest.mark.parametrize("name", POSITIONS)
def test_rows_of_positions_act_row_by_row(name):
    position = make(name)
    x, q, k = torch.randn(2, 3, 8), torch.randn(2, 3, 4, 2), torch.randn(2, 5, 2, 2)
    q_places, k_places = torch.tensor([[2, 3, 4], [7, 8, 9]]), torch.tensor([[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]])
    embedded = position.embed(x, q_places)
    q_turned, k_turned = position.rotate(q, k, q_places, k_places)
    bias = bias_of(position, q_places, k_places)
    for row in range(2):
        one = slice(row, row + 1)
        assert torch.equal(embedded[one], position.embed(x[one], q_places[row]))
        q_row, k_row = position.rotate(q[one], k[one], q_places[row], k_places[row])
        assert torch.equal(q_turned[one], q_row)
        assert torch.equal(k_turned[one], k_row)
        if bias is not None:
            assert torch.equal(bias.written()[one], bias_of(position, q_places[row], k_places[row]).written())


@pytest.mark.parametrize("name", [name for name in POSITIONS if make(name).has("bias")])
def test_only_those_by_distance_may_be_counted_from_anywhere(name):
    """As along a row of packed documents, whose tokens see their own alone."""
    position = make(name)
    if position.has("steps"):
        assert not position.by_distance  # it reads sums and no places
        return
    for parameter in position.parameters():
        torch.nn.init.normal_(parameter)
    documents = torch.arange(5), torch.arange(9)
    packed, row = torch.cat(documents), 3 + torch.arange(14)
    own, along = (position.bias(places, places, 4).written()[0] for places in (packed, row))
    same = [torch.allclose(own[:, part, part], along[:, part, part]) for part in (slice(0, 5), slice(5, 14))]
    assert all(same) == position.by_distance


@pytest.mark.parametrize("name", POSITIONS)
def test_nothing_at_length_zero(name):
    position = make(name)
    none = torch.arange(0)
    assert position.embed(torch.randn(2, 0, 8), none).shape == (2, 0, 8)
    q, k = position.rotate(torch.randn(2, 0, 4, 2), torch.randn(2, 3, 4, 2), none, torch.arange(3))
    assert q.shape == (2, 0, 4, 2)
    assert k.shape == (2, 3, 4, 2)
    bias = bias_of(position, none, torch.arange(3))
    assert bias is None or tuple(bias.written().shape) == (1, 4, 0, 3)


@pytest.mark.parametrize("name", POSITIONS)
def test_bfloat16_stays_bfloat16(name):
    position = make(name)
    x, q, places = torch.randn(1, 3, 8).bfloat16(), torch.randn(1, 3, 4, 2).bfloat16(), torch.arange(3)
    assert position.embed(x, places).dtype == torch.bfloat16
    assert position.rotate(q, q, places, places)[0].dtype == torch.bfloat16


def test_unknown_hook_suggests_the_nearest():
    with pytest.raises(InputError, match="rotate"):
        make("rope").has("rotates")


def test_angles_keep_the_last_turn_at_large_positions():
    far = 10_000_001
    found = angles(torch.tensor([far]), 4, 10000.0)[0].sin().tolist()
    assert found == pytest.approx([math.sin(far), math.sin(far / 100)], abs=1e-9)
