import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lengthwise.ops import rms_norm as module
from lengthwise.ops.rms_norm import RMSNorm, rms_norm


@given(st.integers(1, 4), st.integers(1, 300), st.booleans(), st.sampled_from([None, 1e-6, 1e-2]), st.booleans())
def test_few_vectors_are_normed_as_the_definition_says(rows, dim, weighted, eps, double):
    dtype = torch.float64 if double else torch.float32
    generator = torch.Generator().manual_seed(rows * 1000 + dim)
    x = torch.randn(1, rows, dim, dtype=dtype, generator=generator)
    weight = torch.randn(dim, dtype=dtype, generator=generator) if weighted else None
    assert module._few(x, weight)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13  # sums of up to 300 squares in another order
    torch.testing.assert_close(
        rms_norm(x, weight, eps), rms_norm(x, weight, eps, backend="torch"), rtol=tolerance, atol=tolerance
    )


def test_what_is_not_finite_or_zero_is_as_the_definition_says():
    x = torch.ones(4, 8)
    x[0, 3], x[1, 2], x[2] = torch.nan, torch.inf, 0
    torch.testing.assert_close(rms_norm(x, eps=1e-5), rms_norm(x, eps=1e-5, backend="torch"), equal_nan=True)


def test_all_else_is_left_to_pytorch():
    layer, plain = RMSNorm(8, eps=1e-5), nn.RMSNorm(8, eps=1e-5)
    x = torch.randn(2, 3, 8)
    assert torch.equal(layer(x), plain(x))  # a gradient may be wanted
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad():
        for given in (x.bfloat16(), torch.randn(3, 8).T.reshape(3, 8), x[..., ::2].repeat(1, 1, 2), x[:0]):
            torch.testing.assert_close(layer.to(given.dtype)(given), plain.to(given.dtype)(given))
        both = RMSNorm((3, 8)), nn.RMSNorm((3, 8))
        torch.testing.assert_close(both[0](x.float()), both[1](x.float()))


def test_a_vector_of_another_width_is_refused_as_pytorch_does():
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"normalized_shape"):
        RMSNorm(8)(torch.randn(2, 4))
