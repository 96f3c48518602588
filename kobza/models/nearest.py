"""The nearest rows of a table, exactly: every row is compared, none is skipped.

Products are taken block by block, so that memory is bounded, in float32 or (many queries) in bfloat16; the best few are
compared again in float64. A query for which rounding could have hidden a neighbor is asked again in float32.
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


MANY = 32
"""From this many queries on, rough products in bfloat16 choose the candidates, where the processor has them (not for
Euclidean distances: their squares are too large beside their differences)."""

ROUGH = 0.0062
"""Bound on the error of a product in bfloat16, as a share of both lengths: three roundings of 2^-9, and a little."""


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
        Values (Q, k) float64, nearest first, computed in float64, and rows (Q, k) int64; among
        more equal rows than fit any may be returned.

    Raises:
        OutOfRange: k exceeds the rows.
    """
    if not 1 <= k <= len(matrix):
        raise OutOfRange(f"k={k} neighbors of {len(matrix)} rows; allowed: 1 .. {len(matrix)}")
    queries = queries.double() if center is None else queries.double() - center.double()
    if metric == "cosine":  # the length of a query changes nothing but the scale of rounding
        queries = queries / queries.norm(dim=1, keepdim=True).clamp_min(1e-300)
    if len(queries) < MANY or metric == "euclid" or not has_bfloat16():
        return _in_float32(matrix, queries, k, metric, center)
    values, rows, is_certain = _in_bfloat16(matrix, queries, k, metric, center)
    if not bool(is_certain.all()):
        values[~is_certain], rows[~is_certain] = _in_float32(matrix, queries[~is_certain], k, metric, center)
    return values, rows


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 numbers itself; if not, float32 is faster."""
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def _in_float32(matrix: Tensor, queries: Tensor, k: int, metric: str, off: Tensor | None) -> tuple[Tensor, Tensor]:
    few = min(len(matrix), k + SPARE)
    rows = _best(matrix, queries, few, metric, off, torch.float32)[1]
    values, rows = _exactly(matrix, queries, rows, metric, off)
    return values[:, :k], rows[:, :k]


def _in_bfloat16(
    matrix: Tensor, queries: Tensor, k: int, metric: str, off: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates from rough products; certain where no other row can reach the k-th, whatever the rounding did."""
    few = min(len(matrix), 2 * k + 4 * SPARE)
    rough, rows = _best(matrix, queries, few, metric, off, torch.bfloat16)
    values, rows = _exactly(matrix, queries, rows, metric, off)
    kth = values[:, k - 1]
    lengths = queries.norm(dim=1)
    longest = 1.0 if metric == "cosine" else float(prepared(matrix, "dot", off)[0].norm(dim=1).max())
    is_certain = rough[:, -1].double() + ROUGH * lengths * longest < kth
    return values[:, :k], rows[:, :k], is_certain | (few == len(matrix))


def _best(
    matrix: Tensor, queries: Tensor, k: int, metric: str, off: Tensor | None, kind: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The largest products (Q, k), falling, and their rows, taken in numbers of `kind`, block by block."""
    points = queries.to(kind)
    best = torch.full((len(queries), 0), -torch.inf)
    rows = torch.zeros((len(queries), 0), dtype=torch.int64)
    for begin in range(0, len(matrix), ROWS_AT_ONCE):
        block, plus = prepared(matrix[begin : begin + ROWS_AT_ONCE], metric, off)
        products = torch.addmm(plus.to(kind), points, block.to(kind).T)
        values, at = products.topk(min(k, len(block)), sorted=False)
        best, rows = torch.cat([best, values.float()], 1), torch.cat([rows, at + begin], 1)
        best, kept = best.topk(min(k, best.shape[1]))
        rows = rows.gather(1, kept)
    return best, rows


def _exactly(matrix: Tensor, queries: Tensor, rows: Tensor, metric: str, off: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compare the candidates again in float64 and sort them; ties by row."""
    values = torch.empty(rows.shape, dtype=torch.float64)
    rows = rows.sort(1).values
    for begin in range(0, len(rows), 16):
        part = slice(begin, begin + 16)
        near = matrix[rows[part]].double()
        values[part] = measure(queries[part, None], near if off is None else near - off.double(), metric)
    order = values.sort(stable=True, dim=1, descending=metric != "euclid")
    return order.values, rows.gather(1, order.indices)


def measure(a: Tensor, b: Tensor, metric: str) -> Tensor:
    """Cosine, dot product or Euclidean distance along the last axis."""
    if metric == "euclid":
        return (a - b).square().sum(-1).sqrt()
    products = (a * b).sum(-1)
    return products if metric == "dot" else products / (a.norm(dim=-1) * b.norm(dim=-1)).clamp_min(1e-300)
