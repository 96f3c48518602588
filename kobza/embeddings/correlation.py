"""Clumps of near-identical rows: the tokens that training never touched, and what they are.

Two rows belong together when the Pearson correlation of their D numbers exceeds a threshold; a clump is a connected
component of that relation (single linkage). All pairs are compared, block by block. A table starts out random and decay
pulls rows that no text uses to one place, so the clump at a correlation near 1 is the list of untrained tokens; norms
alone do not show it (SmolLM2's untrained rows have an ordinary norm).
Source: Land & Bartolo (2024), "Fishing for Magikarp", arXiv:2405.05417, for untrained tokens found by their rows.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from kobza.core.errors import OutOfRange
from kobza.core.figure import Figure
from kobza.core.progress import progress
from kobza.core.table import Table
from kobza.embeddings.base import Vectors, vectors_of
from kobza.models import linear_algebra

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kobza.embeddings.base import Subject

BLOCK = 4096
"""Rows compared with as many others at a time: 67 MB of correlations."""

ROUNDING = 1e-5
"""Pairs this close to the threshold are compared again in float64: float32 products are off by about 1e-6."""

SAMPLE, PASSED = 2000, 1e-3
"""Rows on which the screen is tried, and the share of their pairs that may pass it."""

NEVER_IN_UTF8 = frozenset({0xC0, 0xC1, *range(0xF5, 0x100)})
"""Bytes that occur in no UTF-8 text (RFC 3629, section 1)."""

SHOWN = 8
"""Members listed of a clump."""


def table(
    model: Subject,
    *,
    threshold: float = 0.9999,
    rows: str = "",
    bins: int = 64,
    least: int = 2,
    end: Literal["in", "out"] = "in",
) -> Table:
    """Clumps of rows that correlate above a threshold, and a picture of all correlations.

    Args:
        model: an opened model, or word vectors.
        threshold: rows correlated more than this belong together [correlation, 0 < .. < 1].
        rows: range of rows for the picture, `0..63` (both ends included); all rows in bins if absent.
        bins: stretches of row numbers in the picture of all rows [count, 1 .. 512].
        least: rows a clump must have to be listed [count, 2 ..].
        end: the model's table: in, or out.

    Returns:
        One row per clump, largest first, and one for the rows in none: size, what its members are (control tokens,
        bytes that never occur in UTF-8, other single bytes, others), norms, members and ids. The figure shows the
        mean correlation between stretches of ids, or every correlation of the chosen rows.

    Raises:
        OutOfRange: a threshold, range or number of bins outside what is allowed.

    Cost: at most N^2 D / 2 multiplications, in blocks of 67 MB however many rows there are; a bound on the
    correlations spares most of them (SmolLM2: see bench/neighbors.py).
    """
    if not 0 < threshold < 1:
        raise OutOfRange(f"threshold={threshold}; allowed: above 0 and below 1")
    if least < 2:
        raise OutOfRange(f"least={least}; allowed: 2 or more rows")
    vectors = vectors_of(model, end)
    units = standardized(vectors.matrix)
    found = clumps(units, threshold, least=least)
    figure = _picture(vectors, units, rows, min(bins, len(vectors)))
    count = f"{len(found)} clump{'s' * (len(found) != 1)}"
    rest = f"{sum(map(len, found))} of {len(vectors):,} {vectors.kind} in {count}; all pairs compared."
    title = f"Clumps in {vectors.name} with correlation above {threshold}"
    alone = sorted(set(range(len(vectors))).difference(*found))
    listed = [_row(vectors, clump) for clump in found] + [_row(vectors, alone) | {"what": "in no clump"}] * bool(alone)
    return Table(listed, units={"size": "count"}, title=title, note=rest, figures=[figure])


def standardized(matrix: Tensor) -> Tensor:
    """Rows less their own mean, of length 1, (N, D) float32: their products are Pearson correlations.

    A constant row correlates with nothing: it becomes 0.
    """
    rows = matrix - matrix.mean(1, keepdim=True)
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30)


def clumps(units: Tensor, threshold: float, *, least: int = 2) -> list[list[int]]:
    """Connected components of "correlate above the threshold", largest first, each sorted.

    Args:
        units: rows of length 1, (N, D), see `standardized`.
        threshold: [0 .. 1].
        least: smallest size that is returned [count, 1 ..].
    """
    parent = list(range(len(units)))
    for a, b in _pairs(units, threshold):
        parent[_root(parent, a)] = _root(parent, b)
    groups: dict[int, list[int]] = {}
    for row in range(len(units)):
        groups.setdefault(_root(parent, row), []).append(row)
    found = [group for group in groups.values() if len(group) >= least]
    return sorted(found, key=lambda group: (-len(group), group[0]))


def _pairs(units: Tensor, threshold: float) -> list[tuple[int, int]]:
    """All pairs i < j correlated above the threshold: screened by a bound that no such pair can miss, then exactly."""
    left, right = _screens(units, threshold)
    pairs: list[tuple[int, int]] = []
    starts = range(0, len(units), BLOCK)
    for begin in progress(starts, "correlations", total=len(starts)):
        for other in range(begin, len(units), BLOCK):
            bounds = left[begin : begin + BLOCK] @ right[other : other + BLOCK].T
            if float(bounds.amax()) <= threshold - ROUNDING:
                continue
            near = (bounds > threshold - ROUNDING).nonzero() + torch.tensor([begin, other])
            near = near[near[:, 0] < near[:, 1]]
            for part in near.split(BLOCK):
                exact = (units[part[:, 0]].double() * units[part[:, 1]].double()).sum(1)
                pairs += [(a, b) for a, b in part[exact > threshold].tolist()]
    return pairs


def _screens(units: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Two matrices (N, m + 1) whose products bound the correlations from above.

    With p the part of a row in the m strongest directions and r the length of the rest, a b <= p_a p_b + r_a r_b
    (Cauchy-Schwarz). m is the smallest that lets few of a sample's pairs through; the rest is compared exactly.
    """
    basis = linear_algebra.eigen(linear_algebra.gram(units))[1].to(units.dtype)
    sample = units[:: max(1, len(units) // SAMPLE)]
    for m in (16, 32, 64, 128, 256):
        if m >= units.shape[1]:
            break
        part = _screen(sample, basis[:, :m])
        if float((part @ part.T > threshold).float().mean()) < PASSED + 1 / len(sample):
            whole = _screen(units, basis[:, :m])
            return whole, whole
    return units, units


def _screen(units: Tensor, basis: Tensor) -> Tensor:
    part = units @ basis
    rest = (units.square().sum(1) - part.square().sum(1)).clamp_min(0).sqrt()
    return torch.cat([part, rest[:, None]], 1)


def _root(parent: list[int], row: int) -> int:
    while parent[row] != row:
        parent[row] = parent[parent[row]]
        row = parent[row]
    return row


def what_is(vectors: Vectors, row: int) -> str:
    """What kind of row it is: "control token", "byte never in UTF-8", "byte", "no token", "token" or "word"."""
    if vectors.pieces is None:
        return "word"
    piece = vectors.pieces(row)
    if row in vectors.special:
        return "control token"
    if len(piece) == 1 and not (0x20 <= piece[0] < 0x7F):
        return "byte never in UTF-8" if piece[0] in NEVER_IN_UTF8 else "byte"
    return "token" if piece else "no token"


def _row(vectors: Vectors, clump: Sequence[int]) -> dict[str, Any]:
    kinds = Counter(what_is(vectors, row) for row in clump)
    norms = vectors.norms[list(clump)]
    listed = " ".join(vectors.labels[row][:24] for row in clump[:SHOWN]) + (" ..." if len(clump) > SHOWN else "")
    return {
        "size": len(clump),
        "what": ", ".join(f"{count} {kind}{'s' * (count > 1)}" for kind, count in kinds.most_common()),
        "mean norm": float(norms.mean()),
        "least norm": float(norms.min()),
        "greatest norm": float(norms.max()),
        "members": listed,
        "ids": " ".join(map(str, clump[:SHOWN])),
    }


def _picture(vectors: Vectors, units: Tensor, rows: str, bins: int) -> Figure:
    """Correlations of the chosen rows, or mean correlations between stretches of all rows."""
    if rows:
        low, high = _range(rows, len(vectors))
        chosen = units[low : high + 1]
        labels = vectors.labels[low : high + 1]
        data = {"values": (chosen @ chosen.T).numpy(), "rows": labels, "columns": labels}
        return Figure("image", data, title=f"Correlations of rows {rows}", caption="Pearson correlation of two rows.")
    if not 1 <= bins <= 512:
        raise OutOfRange(f"bins={bins}; allowed: 1 .. 512")
    edges = torch.linspace(0, len(units), bins + 1).long().tolist()
    # the mean product of two stretches is the product of their means: no pair need be formed
    means = torch.stack([units[a:b].double().mean(0) for a, b in pairwise(edges)])
    labels = [f"{a}" for a in edges[:-1]]
    caption = f"Mean Pearson correlation between {bins} stretches of row numbers; row labels: first id."
    data = {"values": (means @ means.T).numpy(), "rows": labels, "columns": labels}
    return Figure("image", data, title=f"Correlation by id, {vectors.name}", caption=caption, x="id", y="id")


def _range(text: str, count: int) -> tuple[int, int]:
    first, dots, last = text.partition("..")
    is_range = dots and first.strip().isdecimal() and last.strip().isdecimal()
    low, high = (int(first), int(last)) if is_range else (0, -1)
    if not low <= high < count or high - low >= 2048:
        raise OutOfRange(f"rows={text!r}; allowed: a range a..b within 0..{count - 1} of at most 2048 rows")
    return low, high
