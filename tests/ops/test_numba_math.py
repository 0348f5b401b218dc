import numpy as np
import pytest
from numba import njit

from lengthwise.ops import numba_math


@njit
def exp2_of(x):
    return [numba_math.exp2(v) for v in x]


@njit
def exp_of(x):
    return [numba_math.exp(v) for v in x]


@njit
def log1p_of(x):
    return [numba_math.log1p(v) for v in x]


@njit
def sigmoid_of(x):
    return [numba_math.sigmoid(v) for v in x]


@pytest.mark.parametrize(("dtype", "error"), [(np.float32, 3e-7), (np.float64, 1e-13)])
@pytest.mark.parametrize(
    ("function", "exact", "low", "high"),
    [
        (exp2_of, np.exp2, -126, 127),
        (exp_of, np.exp, -87, 88),
        (log1p_of, np.log1p, 0, 1),
        (sigmoid_of, lambda x: 1 / (1 + np.exp(-x)), -80, 80),
    ],
)
def test_relative_error(dtype, error, function, exact, low, high):
    x = np.linspace(low, high, 20_001).astype(dtype)
    expected = exact(x.astype(np.float64))
    assert np.abs(np.array(function(x)) - expected).max(initial=0, where=expected == 0) == 0
    relative = np.abs(np.array(function(x)) / np.where(expected == 0, 1, expected) - 1)
    assert relative[expected != 0].max() < error


def test_outside_the_range_of_float32():
    low, zero, high = exp2_of(np.array([-1e30, 0, 1e30], dtype=np.float32))
    assert 0 <= low < 2e-38
    assert zero == 1
    assert 2e38 < high < np.inf


def test_an_exponent_close_to_zero_keeps_its_distance_from_one():
    x = np.array([-1e-3, -1e-2], dtype=np.float32)
    assert 1 - np.array(exp2_of(x)) == pytest.approx(1 - np.exp2(x.astype(np.float64)), rel=1e-4, abs=6e-8)
