import math

import pytest
import torch

from lengthwise.errors import InputError
from lengthwise.positions.sinusoidal import Sinusoidal


def test_the_formula_of_the_paper():
    dim, places = 8, [0, 1, 5, 1000]
    x = torch.zeros(1, len(places), dim, dtype=torch.float64)
    waves = Sinusoidal().embed(x, torch.tensor(places))[0]
    for row, p in enumerate(places):
        for i in range(dim // 2):
            angle = p / 10000 ** (2 * i / dim)
            assert math.isclose(waves[row, 2 * i], math.sin(angle), abs_tol=1e-9)
            assert math.isclose(waves[row, 2 * i + 1], math.cos(angle), abs_tol=1e-9)


def test_scale_multiplies_the_waves_and_not_the_embedding():
    x, places = torch.randn(1, 4, 8), torch.arange(4)
    once, half = Sinusoidal().embed(x, places) - x, Sinusoidal(scale=0.5).embed(x, places) - x
    torch.testing.assert_close(half, once / 2, rtol=1e-5, atol=1e-6)


def test_inner_products_depend_on_the_distance_alone():
    waves = Sinusoidal().embed(torch.zeros(1, 300, 16, dtype=torch.float64), torch.arange(300))[0]
    products = waves @ waves.T
    torch.testing.assert_close(products[3, 10], products[203, 210])


def test_odd_width_is_refused():
    with pytest.raises(InputError, match="even dim"):
        Sinusoidal().embed(torch.zeros(1, 2, 7), torch.arange(2))


def test_base_must_be_positive():
    with pytest.raises(InputError, match="base"):
        Sinusoidal(base=0)
