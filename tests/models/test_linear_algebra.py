"""Sums, norms and singular values in float64: equal to numpy's and to the closed formulas."""

import gc

import numpy as np
import pytest
import torch

from kobza.models import linear_algebra as la


def table(rows: int = 300, columns: int = 24, seed: int = 0, shift: float = 0.7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * torch.linspace(0.05, 2, columns) + shift


@pytest.mark.parametrize("shape", [(300, 24), (24, 300), (16, 16)])
def test_values_equal_numpy(shape):
    W = table(*shape)
    expected = np.linalg.svd(W.double().numpy(), compute_uv=False)
    assert np.allclose(la.svd(W).values, expected, rtol=1e-9)


def test_float32_products_of_a_long_table_equal_lapack():
    W = table(la.LONG + 100, 40)
    assert np.allclose(la.svd(W).values, torch.linalg.svdvals(W.double()), rtol=1e-5)


def test_a_long_table_near_low_rank_falls_back_to_float64():
    W = table(la.LONG, 40)
    W[:, -1] = W[:, 1] + 1e-3 * table(la.LONG, 40, seed=1)[:, 2]
    assert np.allclose(la.svd(W).values, torch.linalg.svdvals(W.double()), rtol=1e-4)


@pytest.mark.parametrize("shape", [(300, 24), (24, 300)])
def test_vectors_multiply_back_and_are_orthonormal(shape):
    U, S, Vt = la.svd(table(*shape)).vectors()
    assert torch.allclose((U * S) @ Vt, table(*shape), atol=1e-4)
    assert torch.allclose(U.T @ U, torch.eye(24), atol=1e-4)
    assert torch.allclose(Vt @ Vt.T, torch.eye(24), atol=1e-4)


@pytest.mark.parametrize("shape", [(300, 24), (24, 300)])
def test_error_of_the_factors_is_the_tail_energy(shape):
    W = table(*shape)
    found = la.svd(W)
    A, B = found.factors(9)
    assert la.frobenius(W - A @ B) == pytest.approx(found.error(9), rel=1e-4)
    assert found.energy[8] == pytest.approx(1 - (found.error(9) / la.frobenius(W)) ** 2, rel=1e-6)


def test_full_rank_leaves_nothing_out():
    assert la.svd(table()).error(24) == 0


def test_signs_are_settled_by_the_largest_entry():
    basis = la.svd(table()).basis
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    assert bool((largest > 0).all())


def test_a_table_is_factorized_once_and_anew_after_a_write():
    W = table()
    first = la.svd(W).values
    assert la.svd(W.detach()).values is first
    W[0, 0] += 1
    assert la.svd(W).values is not first


def test_what_is_remembered_dies_with_its_tensor():
    la._known.clear()
    W = table(seed=3)
    la.svd(W)
    del W
    gc.collect()
    la.svd(table(seed=4))
    assert sum(not alive.expired() for alive, _ in la._known.values()) <= 1


def test_sums_equal_numpy_in_float64():
    W, weights = table(), torch.rand(300, generator=torch.Generator().manual_seed(1))
    X, w = W.double().numpy(), weights.double().numpy()
    mean = (w[:, None] * X).sum(0) / w.sum()
    assert np.allclose(la.gram(W), X.T @ X)
    assert np.allclose(la.column_mean(W, weights=weights), mean)
    centered = la.gram(W, weights=weights, center=la.column_mean(W, weights=weights))
    assert np.allclose(centered, (w[:, None] * (X - mean)).T @ (X - mean))
    assert np.allclose(la.row_norms(W), np.linalg.norm(X, axis=1))
    assert la.frobenius(W) == pytest.approx(np.linalg.norm(X), rel=1e-12)
    assert la.deviation(W) == pytest.approx(X.std(), rel=1e-12)
