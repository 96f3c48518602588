"""One intervention on two models: their tables side by side, and the difference of their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kobza.core.errors import NotComparable
from kobza.core.figure import Figure
from kobza.core.result import Reading, Result
from kobza.core.table import Table

KEYS = (("place",), ("head",), ("stream", "position"), ("site", "position"))


def before_after(before: Result, after: Result, what: str) -> Result:
    """Join the results of one intervention on two models.

    Args:
        before: of the original.
        after: of the edited model.
        what: the edit, as written.

    Returns:
        A Result: the first tables joined on their places (a: before, b: after, largest difference first); the pictures
        of before, after and after - before; readings of both, and `agreement`: the correlation of the first changing
        number over places.

    Raises:
        NotComparable: the tables do not name the same places.
    """
    a, b = before.tables[0], after.tables[0]
    on = next((keys for keys in KEYS if all(key in a.columns and key in b.columns for key in keys)), None)
    if on is None or {tuple(row[k] for k in on) for row in a} != {tuple(row[k] for k in on) for row in b}:
        raise NotComparable("the two results do not name the same places.", "Ask both models about the same places.")
    joined = a.compare(b, on=on)
    number = next((c for c in a.columns if c.endswith(" change") and f"{c} a" in joined.columns), None)
    number = number or next(c.removesuffix(" a") for c in joined.columns if c.endswith(" a"))
    rows = sorted(joined.rows, key=lambda row: -abs(row[f"{number} b-a"] or 0.0))
    figures = _figures(a.figures, b.figures, what)
    title = f"Before (a) and after (b) {what}"
    table = Table(rows, units=joined.units, title=title, note=a.note, order=joined.columns, figures=figures)
    readings = [_agreement(rows, number, before.made_by)]
    for side, one in (("before", before), ("after", after)):
        readings += [_renamed(reading, f"{reading.name} {side}") for reading in one.readings]
    return Result(f"{before.title}, before and after {what}", readings, [table], made_by=dict(after.made_by))


def _renamed(reading: Reading, name: str) -> Reading:
    return Reading.from_json({**reading.to_json(), "name": name})


def _agreement(rows: Sequence[dict[str, Any]], number: str, made: Any) -> Reading:
    x, y = ([float(row[f"{number} {side}"] or 0.0) for row in rows] for side in "ab")
    n = len(rows)
    mx, my = sum(x) / n, sum(y) / n
    both = sum((p - mx) * (q - my) for p, q in zip(x, y, strict=True))
    spread = (sum((p - mx) ** 2 for p in x) * sum((q - my) ** 2 for q in y)) ** 0.5
    note = f"correlation of '{number}' over {n} places, before and after"
    return Reading("agreement", both / spread if spread else 0.0, "", record=made, note=note)


def _figures(a: Sequence[Figure], b: Sequence[Figure], what: str) -> list[Figure]:
    found = []
    for one, other in zip(a, b, strict=False):
        if one.kind != "image" or [len(r) for r in one.data["values"]] != [len(r) for r in other.data["values"]]:
            continue
        for figure, side in ((one, "before"), (other, f"after {what}")):
            found.append(Figure(**{**figure.to_json(), "title": f"{figure.title}: {side}"}))
        difference = [
            [None if x is None or y is None else y - x for x, y in zip(*rows, strict=True)]
            for rows in zip(one.data["values"], other.data["values"], strict=True)
        ]
        data = {k: v for k, v in one.data.items() if k != "marks"} | {"values": difference, "diverging": True}
        caption = f"After {what} minus before. {one.caption}"
        found.append(Figure("image", data, title=f"{one.title}: difference", caption=caption, x=one.x, y=one.y))
    return found
