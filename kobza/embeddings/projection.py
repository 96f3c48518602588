"""The map of all tokens or words by their principal components, in two or three dimensions.

Source: Pearson (1901), doi:10.1080/14786440109462720. Signs are settled: the largest entry of each direction is
positive, so that equal tables give equal maps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from kobza.core.errors import OutOfRange
from kobza.core.table import Table
from kobza.embeddings.base import Vectors, components_of, picture, vectors_of

if TYPE_CHECKING:
    from kobza.embeddings.base import Subject
    from kobza.models.linear_algebra import Principal


def table(
    model: Subject,
    *,
    words: list[str] | None = None,
    ids: str = "",
    only: bool = False,
    components: int = 2,
    end: Literal["in", "out"] = "in",
) -> Table:
    """Principal components of the table, and the map.

    Args:
        model: an opened model, or word vectors.
        words: tokens or words labelled on the map, spelled exactly (`" lava"` with its space).
        ids: rows labelled on the map: `17`, or a range `500..520`, or several with `;` between.
        only: draw the labelled rows alone, along their own principal components (three rows at least).
        components: dimensions of the map; with 3 it turns [count, 2 .. 3].
        end: the model's table: in, or out.

    Returns:
        With rows to label: their coordinates (component 1 ..) and norm. Without: the share of the centered variance
        each of the first components explains [fraction], and cumulated. The map is the first figure.

    Raises:
        UnknownName: a word is no single row.
        OutOfRange: an id or a range is outside the table.
    """
    vectors = vectors_of(model, end)
    rows = list(dict.fromkeys([*vectors.rows(words or []), *parse_rows(ids, len(vectors))]))
    parts = components_of(vectors, rows if only else ())
    if not 2 <= components <= min(3, vectors.width):
        raise OutOfRange(f"components={components} of vectors of width {vectors.width}; allowed: 2, or 3")
    figure = picture(vectors, rows=rows, components=components, only=only and bool(rows), parts=parts)
    found = _coordinates(vectors, rows, parts, components) if rows else _shares(parts)
    found.title = f"Principal components of {vectors.name}"
    found.note = f"Principal components of {'these rows' if only and len(rows) > 2 else 'the whole table'}, centered."
    found.figures = [figure]
    return found


def parse_rows(text: str, count: int) -> list[int]:
    """Row numbers of `17`, `500..520` (both ends included) or several with ; between.

    >>> parse_rows("3;7..9", 10)
    [3, 7, 8, 9]

    Raises:
        OutOfRange: not of this form, or outside 0 .. count - 1.
    """
    rows: list[int] = []
    for part in filter(None, (piece.strip() for piece in text.split(";"))):
        first, dots, last = part.partition("..")
        is_number = first.isdecimal() and (last.isdecimal() if dots else True)
        low, high = (int(first), int(last) if dots else int(first)) if is_number else (0, -1)
        if not low <= high < count:
            raise OutOfRange(
                f"{part!r} names no rows of this table; allowed: 0 .. {count - 1}, or a range as 0..{count - 1}"
            )
        rows += range(low, high + 1)
    return rows


def _coordinates(vectors: Vectors, rows: list[int], parts: Principal, count: int) -> Table:
    places = parts.places(vectors.matrix[rows], count).tolist()
    found: list[dict[str, Any]] = []
    for row, place in zip(rows, places, strict=True):
        axes = {f"component {axis}": value for axis, value in enumerate(place, 1)}
        found.append({"label": vectors.labels[row], "id": row} | axes | {"norm": float(vectors.norms[row])})
    return Table(found)


def _shares(parts: Principal) -> Table:
    shown = [n for n in (1, 2, 3, 5, 10, 20, 50, 100, 200, 500) if n <= len(parts.share)]
    rows = [
        {"components": n, "share of the last": float(parts.share[n - 1]), "share of all": float(parts.share[:n].sum())}
        for n in shown
    ]
    units = {"share of the last": "fraction", "share of all": "fraction"}
    return Table(rows, units=units)
