"""Sums, norms and singular values of large tables, in float64.

A table of N = 49,152 rows and d = 576 columns has its singular values in its d x d Gram matrix: W^T W = V S^2 V^T.
One pass over the rows and one eigen-decomposition of d x d numbers replace the SVD of the table. In float64 the
squaring costs nothing that float32 weights could show: the relative error of a singular value s is about
1e-16 (s_max / s)^2.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

BLOCK = 4096
"""Rows taken to float64 at a time: 19 MB for 576 columns."""

LONG = 8192
"""From this many rows on the Gram matrix is first tried in float32 products."""

ROUNDING = 5e-4
"""Smallest eigenvalue, as a share of the largest centered one, that float32 products give within 2e-4."""

STRIP = 144
"""Columns of a strip: at a width of 576 only 10 of 16 blocks are multiplied."""

REMEMBERED = 256
"""Factorizations kept at most; each holds min(M, N)^2 float64 numbers and dies with its tensor."""


@dataclass(frozen=True)
class Svd:
    """The singular value decomposition W = U S V^T of a matrix (M, N), with R = min(M, N).

    Attributes:
        matrix: W (M, N), float32; shared, not to be written.
        values: S (R,), float64, descending, >= 0.
        basis: V (N, R) when M >= N, else U (M, R); float64, orthonormal columns. The largest entry of each column
            is positive, so that equal matrices give equal signs.
    """

    matrix: Tensor
    values: Tensor
    basis: Tensor

    @property
    def is_tall(self) -> bool:
        """Whether M >= N, so that `basis` holds right vectors."""
        return self.matrix.shape[0] >= self.matrix.shape[1]

    @cached_property
    def energy(self) -> Tensor:
        """Share of the squared norm that the k strongest directions keep, k = 1 .. R; (R,), float64, ends at 1."""
        squares = torch.cumsum(self.values.square(), 0)
        return squares / squares[-1] if squares[-1] > 0 else torch.ones_like(squares)

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """A (M, rank) and B (rank, N) in float32 with A @ B the best approximation of that rank.

        For a tall table A = W V_k and B = V_k^T, else A = U_k and B = U_k^T W: no division by small values.
        Source: Eckart & Young (1936), doi:10.1007/BF02288367.
        """
        kept = self.basis[:, :rank].to(self.matrix.dtype)
        return (self.matrix @ kept, kept.T) if self.is_tall else (kept, kept.T @ self.matrix)

    def error(self, rank: int) -> float:
        """Frobenius norm of what an approximation of that rank leaves out (Eckart-Young: the tail's energy)."""
        return float(self.values[rank:].square().sum().sqrt())

    def vectors(self) -> tuple[Tensor, Tensor, Tensor]:
        """U (M, R), S (R,), V^T (R, N) in float32; columns that belong to a value of 0 are 0."""
        inverse = torch.where(self.values > 0, 1 / self.values, 0).to(self.matrix.dtype)
        kept, values = self.basis.to(self.matrix.dtype), self.values.to(self.matrix.dtype)
        if self.is_tall:
            return (self.matrix @ kept) * inverse, values, kept.T
        return kept, values, inverse[:, None] * (kept.T @ self.matrix)


def svd(matrix: Tensor) -> Svd:
    """Singular values and vectors through the Gram matrix; remembered as long as the tensor lives unchanged.

    Args:
        matrix: W (M, N), finite.

    Returns:
        All min(M, N) singular values; equal to `torch.linalg.svdvals` within 1e-4 relative.

    Cost: O(M N min(M, N)) once, in float64.
    """
    key = _key(matrix)
    found = _known.get(key) if key is not None else None
    if key is not None and found is not None and not found[0].expired():
        _known.move_to_end(key)
        return Svd(matrix.float(), *found[1])
    values, basis = _eigen_of_gram(matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T)
    parts = (values.clamp_min(0).sqrt(), basis)
    if key is not None:
        _remember(key, StorageWeakRef(matrix.untyped_storage()), parts)
    return Svd(matrix.float(), *parts)


def _eigen_of_gram(tall: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and vectors of W^T W: from float32 products where those suffice, else all in float64.

    Rounding in float32 moves an eigenvalue by about 1e-7 of the largest one that was rounded; with the mean row
    taken out exactly, that is the largest *centered* one. The tables of trained models are far from the limit.
    """
    if len(tall) >= LONG and tall.dtype == torch.float32:
        centered, whole = _gram_by_parts(tall)
        values, basis = eigen(whole)
        largest = float(torch.linalg.matrix_norm(centered))
        if float(values[-1]) > ROUNDING * largest:
            return values, basis
    return eigen(gram(tall))


def _gram_by_parts(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Gram matrices (N, N) of the centered and of the plain rows: products in float32, sums in float64.

    With c near the mean and s = sum (x - c):  sum x x^T = sum (x - c)(x - c)^T + s c^T + c s^T + M c c^T.
    """
    width, c = matrix.shape[1], matrix.mean(0)
    centered = torch.zeros(width, width, dtype=torch.float64, device=matrix.device)
    total = torch.zeros(width, dtype=torch.float64, device=matrix.device)
    for begin in range(0, len(matrix), BLOCK):
        rows = matrix[begin : begin + BLOCK] - c
        total += rows.sum(0)
        for left in range(0, width, STRIP):  # the upper triangle only, in strips
            centered[left : left + STRIP, left:] += rows[:, left : left + STRIP].T @ rows[:, left:]
    centered = centered.triu() + centered.triu(1).T
    outer = torch.outer(total, c.double())
    return centered, centered + outer + outer.T + len(matrix) * torch.outer(c.double(), c.double())


def eigen(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (d,) descending and eigenvectors (d, d) as columns, each with its largest entry positive."""
    values, vectors = torch.linalg.eigh(symmetric.double())
    values, vectors = values.flip(0), vectors.flip(1)
    largest = vectors.abs().argmax(0, keepdim=True)
    return values, vectors * torch.where(vectors.gather(0, largest) < 0, -1.0, 1.0)


def gram(matrix: Tensor, *, weights: Tensor | None = None, center: Tensor | None = None) -> Tensor:
    """Sum over rows w_i (x_i - c)(x_i - c)^T, (N, N) in float64.

    Args:
        matrix: rows x_i, (M, N).
        weights: w_i (M,) [>= 0]; 1 if absent.
        center: c (N,); 0 if absent.
    """
    width = matrix.shape[1]
    total = torch.zeros(width, width, dtype=torch.float64, device=matrix.device)
    for begin, rows in _blocks(matrix):
        rows = rows if center is None else rows - center.double()
        weighted = rows if weights is None else rows * weights[begin : begin + len(rows), None].double()
        total.addmm_(weighted.T, rows)
    return total


@dataclass(frozen=True)
class Principal:
    """Principal components of N rows.

    Attributes:
        mean: (D,) float64.
        basis: (D, D) float64, columns by falling variance; the largest entry of each is positive.
        share: of the centered variance along each, (D,) float64, sums to 1.
    """

    mean: Tensor
    basis: Tensor
    share: Tensor

    def places(self, rows: Tensor, count: int) -> Tensor:
        """Coordinates (M, count) in float32 of rows (M, D) along the first components."""
        kept = self.basis[:, :count]
        return (rows @ kept.to(rows.dtype)) - (self.mean @ kept).to(rows.dtype)


def principal(matrix: Tensor) -> Principal:
    """Principal components of the centered rows (M, N), through the N x N covariance in float64.

    Source: Pearson (1901), doi:10.1080/14786440109462720; the sign convention is ours (scikit-learn's differs).
    """
    mean = column_mean(matrix)
    values, basis = eigen(gram(matrix, center=mean))
    values = values.clamp_min(0)
    total = values.sum()
    return Principal(mean, basis, values / total if total > 0 else torch.zeros_like(values))


def column_mean(matrix: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Mean of the rows, (N,) in float64; weighted by w_i (M,) [>= 0, not all 0] if given."""
    total = torch.zeros(matrix.shape[1], dtype=torch.float64, device=matrix.device)
    for begin, rows in _blocks(matrix):
        total += rows.sum(0) if weights is None else weights[begin : begin + len(rows)].double() @ rows
    return total / (len(matrix) if weights is None else weights.double().sum())


def row_norms(matrix: Tensor) -> Tensor:
    """Euclidean norm of every row, (M,) in float64."""
    return torch.cat([rows.square().sum(1).sqrt() for _, rows in _blocks(matrix)])


def frobenius(matrix: Tensor) -> float:
    """Frobenius norm, summed in float64 (float32 reads 1.3-1.5 % low on a table of 151936 x 896)."""
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64))  # 8 times faster than squares of a float64 copy


def deviation(matrix: Tensor) -> float:
    """Standard deviation of all entries about their mean, in float64 (divided by the count)."""
    count = matrix.numel()
    mean = sum(float(rows.sum()) for _, rows in _blocks(matrix)) / count
    return (sum(float((rows - mean).square().sum()) for _, rows in _blocks(matrix)) / count) ** 0.5


def _blocks(matrix: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Rows in float64, `BLOCK` at a time, with the index of the first."""
    for begin in range(0, len(matrix), BLOCK):
        yield begin, matrix[begin : begin + BLOCK].double()


_Key = tuple[int, int, tuple[int, ...], tuple[int, ...], torch.dtype]
_known: OrderedDict[_Key, tuple[StorageWeakRef, tuple[Tensor, Tensor]]] = OrderedDict()


def _key(matrix: Tensor) -> _Key | None:
    """What identifies the numbers of a tensor while its storage lives: every view of a weight has the same."""
    if matrix.is_inference():  # such tensors count no versions: a write could not be noticed
        return None
    return matrix.data_ptr(), matrix._version, tuple(matrix.shape), matrix.stride(), matrix.dtype


def _remember(key: _Key, alive: StorageWeakRef, parts: tuple[Tensor, Tensor]) -> None:
    for old in [k for k, (storage, _) in _known.items() if storage.expired()]:
        del _known[old]
    _known[key] = (alive, parts)
    while len(_known) > REMEMBERED:
        _known.popitem(last=False)
