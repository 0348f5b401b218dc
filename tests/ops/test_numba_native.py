from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from lengthwise.ops import fused
from lengthwise.ops.numba_native import multiply

sides = st.integers(1, 6)


@njit
def run(gemm, factor, a, b, kept, c):
    multiply(gemm, factor, a, b, kept, c)


@settings(deadline=None)
@given(m=sides, k=sides, n=sides, turned=st.tuples(st.booleans(), st.booleans()), kept=st.sampled_from([0, 1]))
@pytest.mark.parametrize("dtype", fused.REAL, ids=str)
def test_products_of_matrices_of_any_size_and_layout(dtype, m, k, n, turned, kept):
    """Even where a side is 1, and which one is the step between rows can't be told from the strides."""
    address = fused.gemm(dtype)
    if address is None:
        pytest.skip("PyTorch's library doesn't show its matrix product here")
    torch.manual_seed(0)
    a, b = (torch.randn(*shape, dtype=dtype) for shape in ((m, k), (k, n)))
    before = torch.randn(m, n, dtype=dtype)
    given_a, given_b = (x.T.contiguous().T if t else x for x, t in zip((a, b), turned, strict=True))
    c = before.clone()
    factor, kept = (c.numpy().dtype.type(x) for x in (0.7, kept))
    run(address, factor, given_a.numpy(), given_b.numpy(), kept, c.numpy())
    torch.testing.assert_close(c, 0.7 * a @ b + float(kept) * before)


def test_parts_of_larger_matrices():
    address = fused.gemm(torch.float32)
    if address is None:
        pytest.skip("PyTorch's library doesn't show its matrix product here")
    a, b = (np.random.default_rng(0).standard_normal((9, 9)).astype(np.float32) for _ in range(2))
    c = np.zeros((9, 9), np.float32)
    run(address, np.float32(1), a[2:5, 1:7], b[3:8, 2:8].T, np.float32(0), c[4:7, 1:6])
    np.testing.assert_allclose(c[4:7, 1:6], a[2:5, 1:7] @ b[3:8, 2:8].T, rtol=1e-5)
    c[4:7, 1:6] = 0
    assert not c.any()
