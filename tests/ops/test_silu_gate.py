import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.ops import fused
from lengthwise.ops.silu_gate import FEW, silu_gate

TOLERANCES = {torch.float32: 2e-6, torch.float64: 1e-14}  # the exponential of float32 is a polynomial, good to 3e-7


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 4), st.integers(1, 300), st.sampled_from(list(TOLERANCES)))
def test_few_vectors_are_gated_as_the_definition_says(rows, width, dtype):
    x = 5 * torch.randn(rows, 1, 2 * width, dtype=dtype, generator=torch.Generator().manual_seed(width))
    assert fused.direct(dtype, x)
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(silu_gate(x), silu_gate(x, backend="torch"), rtol=tolerance, atol=tolerance)


def test_far_numbers_and_what_is_not_finite():
    x = torch.tensor([[-200.0, 200.0, torch.nan, 1, 2, 3]])
    torch.testing.assert_close(silu_gate(x), silu_gate(x, backend="torch"), equal_nan=True, atol=1e-30, rtol=1e-6)


def test_all_else_is_left_to_pytorch():
    x = torch.randn(2, 3, 8, requires_grad=True)
    silu_gate(x).sum().backward()
    assert x.grad is not None
    x = x.detach()
    for other in (x.bfloat16(), torch.randn(3, 8)[:, ::2], torch.randn(2, FEW), x[:0]):
        assert torch.equal(silu_gate(other), silu_gate(other, backend="torch"))
