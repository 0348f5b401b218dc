import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.ops import rotation as module
from lengthwise.ops.rotation import LAYOUTS, rotate, rotate_reference

TOLERANCES = {torch.float32: 1e-6, torch.float64: 1e-14}  # two products and a sum, rounded once or twice


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 3),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.integers(1, 20),
    st.integers(0, 5),
    st.sampled_from(LAYOUTS),
    st.sampled_from(list(TOLERANCES)),
)
def test_a_token_is_turned_as_the_definition_says(rows, heads, pairs, more, layout, dtype):
    torch.manual_seed(rows + 10 * pairs)
    width = 2 * pairs + more
    joined = torch.randn(rows, 1, sum(heads) * width, dtype=dtype)
    tensors = [x.unflatten(2, (-1, width)) for x in joined.split([n * width for n in heads], dim=2)]
    cos, sin = (torch.randn(1, 1, 2 * pairs, dtype=dtype) for _ in range(2))
    assert module._fits(tensors, cos, sin)
    for y, x in zip(rotate(tensors, cos, sin, layout), tensors, strict=True):
        exact = rotate_reference(x, cos, sin, layout)
        torch.testing.assert_close(y, exact, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_else_goes_by_the_definition(layout):
    cos, sin = torch.randn(2, 5, 1, 8)
    x = torch.randn(2, 5, 3, 8)
    assert torch.equal(rotate([x], cos, sin, layout)[0], rotate_reference(x, cos, sin, layout))
    alone = x[:, :1].clone().requires_grad_()
    rotate([alone], cos[:1], sin[:1], layout)[0].sum().backward()
    assert alone.grad is not None
    plain = rotate([x[:, :1]], cos[:1], sin[:1], layout, backend="torch")[0]
    assert torch.equal(plain, rotate_reference(x[:, :1], cos[:1], sin[:1], layout))
