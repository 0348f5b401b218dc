import pytest
import torch

from lengthwise.errors import InputError
from lengthwise.positions.learned import Learned


def test_each_position_adds_its_vector():
    position = Learned(6, length=10)
    x, places = torch.randn(2, 3, 6), torch.tensor([[0, 1, 2], [7, 8, 9]])
    assert torch.equal(position.embed(x, places), x + position.weight[places])


def test_the_vectors_that_were_read_get_the_gradient():
    position = Learned(6, length=10)
    position.embed(torch.zeros(1, 2, 6), torch.tensor([3, 5])).sum().backward()
    touched = position.weight.grad.abs().sum(1) > 0
    assert touched.nonzero().flatten().tolist() == [3, 5]


@pytest.mark.parametrize("places", [[0, 10], [-1, 0]])
def test_positions_without_a_vector_are_refused(places):
    with pytest.raises(InputError, match="end at 9"):
        Learned(6, length=10).embed(torch.zeros(1, 2, 6), torch.tensor(places))


def test_fractions_are_refused():
    with pytest.raises(InputError, match="whole"):
        Learned(6).embed(torch.zeros(1, 2, 6), torch.tensor([0.5, 1.0]))


def test_no_length_is_refused():
    with pytest.raises(InputError, match="length"):
        Learned(6, length=0)


def test_no_value_is_read_inside_a_compiled_graph(monkeypatch):
    """Tensors of the meta device have no values to read."""
    position = Learned(6, length=10).to("meta")
    x, places = torch.zeros(1, 3, 6, device="meta"), torch.arange(3, device="meta")
    with pytest.raises(RuntimeError, match="meta"):
        position.embed(x, places)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert position.embed(x, places).shape == (1, 3, 6)
