"""HiPPO: initial values of state spaces that remember the past as the coefficients of polynomials.

    A_nk = −√(2n+1) √(2k+1)   n > k          A_nn = −(n + 1)          A_nk = 0   n < k

is the memory by Legendre polynomials of everything since the beginning (LegS). It isn't normal, so no stable basis of
eigenvectors makes it diagonal; but with p_n = √(n + 1/2),

    A = S − p pᵀ          S = V Λ V^H          Λ = −1/2 + i diag(ω)

where S + 1/2 is antisymmetric, so that V is unitary. Gu et al. 2020, arXiv 2008.07669, and 2021, arXiv 2111.00396.
"""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor


def legs_matrix(size: int) -> Float[Tensor, "size size"]:
    """A in float64."""
    n = torch.arange(size, dtype=torch.float64)
    root = (2 * n + 1).sqrt()
    return -(torch.outer(root, root).tril(-1) + torch.diag(n + 1))


def legs_normal_part(size: int) -> tuple[Complex[Tensor, " size"], Complex[Tensor, "size size"]]:
    """Λ and V of the normal part S, in complex128, by ascending ω. An even size has its eigenvalues in conjugate pairs,
    of which the first half have ω < 0."""
    p = (torch.arange(size, dtype=torch.float64) + 0.5).sqrt()
    S = legs_matrix(size) + torch.outer(p, p)
    turning, V = torch.linalg.eigh(-1j * S)
    return torch.complex(S.diagonal().mean().expand(size), turning), V
