import pytest
import torch

from lengthwise.errors import InputError
from lengthwise.positions.grid import Grid


def test_each_position_adds_its_row_and_its_column():
    position = Grid(6, width=4, height=3)
    x, places = torch.randn(2, 3, 6), torch.tensor([[0, 1, 4], [7, 8, 11]])
    rows, columns = torch.tensor([[0, 0, 1], [1, 2, 2]]), torch.tensor([[0, 1, 0], [3, 0, 3]])
    assert torch.equal(position.embed(x, places), x + (position.rows[rows] + position.columns[columns]))


@pytest.mark.parametrize("place", [12, -1])
def test_positions_outside_the_grid_are_refused(place):
    with pytest.raises(InputError, match="3 rows of 4 ends at 11"):
        Grid(6, width=4, height=3).embed(torch.zeros(1, 1, 6), torch.tensor([[place]]))


def test_fractions_and_empty_grids_are_refused():
    with pytest.raises(InputError, match="whole"):
        Grid(6).embed(torch.zeros(1, 1, 6), torch.tensor([0.5]))
    with pytest.raises(InputError, match="width must be at least 1"):
        Grid(6, width=0)
