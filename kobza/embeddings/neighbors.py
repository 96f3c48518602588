"""Nearest tokens or words, exactly, in the full space; and how many of them a search after PCA finds.

Searching after a reduction to 10 components with a k-d tree is a common shortcut. It is fast where it is not needed
(one product with the table answers a query) and finds few of the true neighbors: see `reduced`.
Source: Bentley (1975), doi:10.1145/361002.361007, for the tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from kobza.core.errors import MissingExtra, OutOfRange
from kobza.core.table import Table
from kobza.embeddings.base import Query, Vectors, near_table, resolve, row_query, vectors_of
from kobza.models import linear_algebra
from kobza.models.nearest import nearest_rows

if TYPE_CHECKING:
    from kobza.embeddings.base import Subject

EXAMPLES = 5
"""Rows asked about when the caller names none: spread evenly over the table."""


def table(
    model: Subject,
    *,
    token: str = "",
    tokens: list[str] | None = None,
    ids: list[int] | None = None,
    combine: Literal["none", "sum", "mean"] = "none",
    k: int = 10,
    metric: Literal["cosine", "euclid", "dot"] = "cosine",
    center: bool = False,
    reduced: int = 0,
    end: Literal["in", "out"] = "in",
) -> Table:
    """The k nearest rows of one or several queries, out of all rows.

    Args:
        model: an opened model, or word vectors.
        token: a query: a token or word exactly as it is spelled (`" lava"` with its space), or a sum of several
            (`" king" - " man" + " woman"`).
        tokens: several queries, each as `token`.
        ids: several queries by row number [ids, 0 .. rows - 1].
        combine: for text of several tokens: search around the sum or the mean of their vectors.
        k: neighbors per query [count, 1 .. rows - 1].
        metric: cosine (similarity), euclid (distance) or dot (product).
        center: take the mean row off first (it carries 45 % of the energy of SmolLM2's table).
        reduced: components kept by a PCA before a second, Euclidean search, whose share of true neighbors is
            reported; 0 makes none [count, 0 .. width].
        end: the model's table: in, or out.

    Returns:
        Columns query, rank, neighbor, id and the metric; with `reduced` also what the reduced search returned at
        that rank and `found` (whether the true neighbor is among its k). Without a query, five rows spread over the
        table are asked about.

    Raises:
        UnknownName: a text is no single row; the message shows how it splits and what is near.
        OutOfRange: an id, k or `reduced` is outside the table.
    """
    vectors = vectors_of(model, end)
    queries = _queries(vectors, token, tokens or [], ids or [], combine)
    found = near_table(vectors, queries, k=k, metric=metric, center=center)
    return _with_reduced(found, vectors, queries, k, reduced) if reduced else found


def _queries(vectors: Vectors, token: str, tokens: Sequence[str], ids: Sequence[int], combine: str) -> list[Query]:
    texts = [token] * bool(token) + list(tokens)
    asked = [resolve(vectors, text, combine) for text in texts] + [row_query(vectors, row) for row in ids]
    step = max(1, len(vectors) // (EXAMPLES + 1))
    return asked or [row_query(vectors, row) for row in range(step, len(vectors), step)][:EXAMPLES]


def _with_reduced(found: Table, vectors: Vectors, queries: Sequence[Query], k: int, reduced: int) -> Table:
    """The table with the neighbors that a search after PCA gives, and the share of true ones among them."""
    rows = search_reduced(vectors, torch.stack([query.vector for query in queries]), k + 1, components=reduced)
    answers: list[dict[str, object]] = []
    for query, near in zip(queries, rows.tolist(), strict=True):
        kept = [row for row in near if row not in query.rows][:k]
        true = found["id"][len(answers) : len(answers) + k]
        for row, exact in zip(kept, true, strict=True):
            answers.append({"reduced": vectors.labels[row], "found": exact in kept})
    share = sum(bool(answer["found"]) for answer in answers) / len(answers)
    for name in ("reduced", "found"):
        found = found.with_column(name, [answer[name] for answer in answers])
    found.note += f" After PCA to {reduced} components a Euclidean search finds {share:.1%} of the true neighbors."
    return found


def search_reduced(vectors: Vectors, queries: Tensor, k: int, *, components: int, tree: bool = False) -> Tensor:
    """Rows (Q, k) nearest by Euclidean distance after a reduction to the first principal components.

    Args:
        vectors: N rows.
        queries: (Q, D).
        k: rows wanted [count, 1 .. N].
        components: dimensions kept [count, 1 .. D].
        tree: use a k-d tree (scipy) instead of comparing all rows; the same rows up to ties.

    Raises:
        OutOfRange: `components` exceeds the width.
        MissingExtra: the tree needs scipy.
    """
    if not 1 <= components <= vectors.width:
        raise OutOfRange(
            f"reduced={components} components of vectors of width {vectors.width}; allowed: 1 .. {vectors.width}"
        )
    parts = linear_algebra.principal(vectors.matrix)
    table, points = parts.places(vectors.matrix, components), parts.places(queries, components)
    if not tree:
        return nearest_rows(table, points, k, metric="euclid")[1]
    try:
        from scipy.spatial import cKDTree
    except ImportError:
        raise MissingExtra.of("a k-d tree", "scipy", "kdtree") from None
    return torch.from_numpy(cKDTree(table.numpy()).query(points.numpy(), k=[*range(1, k + 1)])[1])


def true_share(vectors: Vectors, rows: Sequence[int], *, components: int, k: int = 10, metric: str = "cosine") -> float:
    """Share of the k true neighbors of these rows that a Euclidean search after PCA finds [fraction, 0 .. 1]."""
    queries = vectors.matrix[list(rows)]
    exact = nearest_rows(vectors.matrix, queries, k + 1, metric=metric)[1]
    reduced = search_reduced(vectors, queries, k + 1, components=components)
    shares = [len({*a} & {*b} - {row}) / k for row, a, b in zip(rows, exact.tolist(), reduced.tolist(), strict=True)]
    return sum(shares) / len(shares)
