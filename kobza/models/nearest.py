"""The nearest rows of a table, exactly: every row is compared, none is skipped.

Products are taken in float32, block by block, so that memory is bounded; the best few are compared again in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kobza.core.errors import OutOfRange
from kobza.models import linear_algebra

ROWS_AT_ONCE = 8192
"""Rows of the table in one block of products: the block's size is bounded, not the table's."""

SPARE = 8
"""Candidates beyond k that are compared again in float64: float32 products near the k-th may swap."""


def prepared(matrix: Tensor, metric: str, center: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows ready for products, and what is added to each product, so that the largest sum is the nearest row.

    cosine: unit rows, 0.  dot: rows, 0.  euclid: rows, -|x|^2 / 2 (half the negative squared distance, less |q|^2 / 2).
    """
    rows = matrix if center is None else matrix - center.to(matrix.dtype)
    zero = torch.zeros(len(rows), dtype=rows.dtype)
    if metric == "cosine":
        return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30), zero
    return rows, zero if metric == "dot" else -0.5 * linear_algebra.row_norms(rows).square().to(rows.dtype)


def nearest_rows(
    matrix: Tensor, queries: Tensor, k: int, *, metric: str = "cosine", center: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The k nearest rows of each query.

    Args:
        matrix: N rows, (N, D).
        queries: (Q, D).
        k: rows wanted [count, 1 .. N].
        metric: "cosine" (similarity, -1 .. 1), "dot" (product) or "euclid" (distance, >= 0).
        center: taken off rows and queries first, (D,); None: nothing.

    Returns:
        Values (Q, k) float64, nearest first, computed in float64, and rows (Q, k) int64; ties by row.

    Raises:
        OutOfRange: k exceeds the rows.
    """
    if not 1 <= k <= len(matrix):
        raise OutOfRange(f"k={k} neighbors of {len(matrix)} rows; allowed: 1 .. {len(matrix)}")
    queries = queries.double() if center is None else queries.double() - center.double()
    rows = _best(matrix, queries.float(), min(len(matrix), k + SPARE), metric, center)
    return _exactly(matrix, queries, rows, k, metric, center)


def _best(matrix: Tensor, queries: Tensor, k: int, metric: str, off: Tensor | None) -> Tensor:
    """Rows (Q, k) of the largest float32 products, block by block."""
    best = torch.full((len(queries), 0), -torch.inf)
    rows = torch.zeros((len(queries), 0), dtype=torch.int64)
    for begin in range(0, len(matrix), ROWS_AT_ONCE):
        block, plus = prepared(matrix[begin : begin + ROWS_AT_ONCE], metric, off)
        products = torch.addmm(plus, queries, block.T)
        values, at = products.topk(min(k, len(block)), sorted=False)
        best, rows = torch.cat([best, values], 1), torch.cat([rows, at + begin], 1)
        best, kept = best.topk(min(k, best.shape[1]))
        rows = rows.gather(1, kept)
    return rows


def _exactly(
    matrix: Tensor, queries: Tensor, rows: Tensor, k: int, metric: str, off: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compare the candidates again in float64 and sort them; ties by row."""
    values = torch.empty(rows.shape, dtype=torch.float64)
    rows = rows.sort(1).values
    for begin in range(0, len(rows), 64):
        part = slice(begin, begin + 64)
        near = matrix[rows[part]].double()
        values[part] = measure(queries[part, None], near if off is None else near - off.double(), metric)
    order = values.sort(stable=True, dim=1, descending=metric != "euclid")
    return order.values[:, :k], rows.gather(1, order.indices[:, :k])


def measure(a: Tensor, b: Tensor, metric: str) -> Tensor:
    """Cosine, dot product or Euclidean distance along the last axis."""
    if metric == "euclid":
        return (a - b).square().sum(-1).sqrt()
    products = (a * b).sum(-1)
    return products if metric == "dot" else products / (a.norm(dim=-1) * b.norm(dim=-1)).clamp_min(1e-300)
