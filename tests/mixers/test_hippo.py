import numpy as np
import pytest
import torch

from lengthwise.mixers.hippo import legs_matrix, legs_normal_part


def by_hand(size):
    """A and p p^T of the definition, number by number."""
    A = np.zeros((size, size))
    for n in range(size):
        for k in range(n):
            A[n, k] = -np.sqrt(2 * n + 1) * np.sqrt(2 * k + 1)
        A[n, n] = -(n + 1)
    p = np.sqrt(np.arange(size) + 0.5)
    return A, np.outer(p, p)


@pytest.mark.parametrize("size", [1, 2, 7, 16])
def test_the_matrix_is_the_definitions(size):
    np.testing.assert_allclose(legs_matrix(size).numpy(), by_hand(size)[0], rtol=1e-14)


@pytest.mark.parametrize("size", [2, 16, 256])
def test_the_normal_part_is_diagonal_in_a_unitary_basis(size):
    eigenvalues, V = (x.numpy() for x in legs_normal_part(size))
    A, low_rank = by_hand(size)
    np.testing.assert_allclose(V.conj().T @ V, np.eye(size), atol=1e-12)
    # The numbers grow to twice the size, and so do the roundings.
    np.testing.assert_allclose(V @ np.diag(eigenvalues) @ V.conj().T, A + low_rank, atol=1e-12 * size)


@pytest.mark.parametrize("size", [2, 16, 64])
def test_eigenvalues_are_those_that_a_general_solver_finds(size):
    eigenvalues, _ = legs_normal_part(size)
    A, low_rank = by_hand(size)
    found = np.linalg.eigvals(A + low_rank)
    found = found[np.argsort(found.imag)]
    np.testing.assert_allclose(eigenvalues.real.numpy(), -0.5, rtol=1e-12)
    np.testing.assert_allclose(found.real, -0.5, atol=1e-10 * size)
    np.testing.assert_allclose(eigenvalues.imag.numpy(), found.imag, atol=1e-10 * size)


def test_the_first_half_is_the_conjugate_of_the_second():
    eigenvalues, _ = legs_normal_part(32)
    assert (eigenvalues.imag[:16] < 0).all()
    torch.testing.assert_close(eigenvalues[:16].conj(), eigenvalues[16:].flip(0))
