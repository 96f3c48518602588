"""A heat map as text: two characters a cell, colored or, where color is not wanted, a sign and a shade."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kobza.core.figure import Figure
from kobza.core.table import show

WIDEST = 100  # columns of numbers shown; more are averaged in equal groups
SHADES = " .:-=+*#%@"
RED, BLUE = (178, 24, 43), (33, 102, 172)  # the ends of the map RdBu, as in the drawn picture (colorbrewer2.org)


def heat_map(figure: Figure, *, colored: bool = False) -> str:
    """Return an image figure as lines of text.

    Args:
        figure: of kind "image".
        colored: with colors of a terminal (24 bit): red is more, blue less; else a sign and one of ten shades.

    A cross of the figure is drawn as `x`. The last line says what the strongest shade stands for.
    """
    values, marks = figure.data["values"], figure.data.get("marks")
    rows = figure.data.get("rows") or list(map(str, range(len(values))))
    group = max(1, math.ceil(len(values[0]) / WIDEST))
    cells = [_grouped(row, group) for row in values]
    crossed = [_any(row, group) for row in marks] if marks else [[False] * len(row) for row in cells]
    top = max((abs(v) for row in cells for v in row if v is not None), default=0.0) or 1.0
    width = max(len(show(name)) for name in rows)
    lines = [
        f"{show(name):>{width}} " + "".join(_cell(v, x, top, colored) for v, x in zip(row, cross, strict=True)).rstrip()
        for name, row, cross in zip(rows, cells, crossed, strict=True)
    ]
    names = figure.data.get("columns")
    ends = f"; columns {show(names[0])} .. {show(names[-1])}" if names else ""
    meaning = "red +, blue -" if colored else f"shades {SHADES.strip()}, a minus before it: less than 0"
    scale = f"{figure.y} down, {figure.x} across{ends}; full = {show(top)}; {meaning}"
    return "\n".join([figure.title, *lines, scale + ("; x: another top token" if marks else "")])


def _grouped(row: Sequence[float | None], size: int) -> list[float | None]:
    """The value of largest size of every group."""
    groups = [[v for v in row[i : i + size] if v is not None] for i in range(0, len(row), size)]
    return [max(group, key=abs) if group else None for group in groups]


def _any(row: Sequence[bool], size: int) -> list[bool]:
    return [any(row[i : i + size]) for i in range(0, len(row), size)]


def _cell(value: float | None, is_crossed: bool, top: float, colored: bool) -> str:
    """Two characters of one cell."""
    if value is None:
        return "  "
    strength = min(1.0, abs(value) / top)
    if colored:
        r, g, b = (round(255 + strength * (end - 255)) for end in (RED if value > 0 else BLUE))
        return f"\x1b[48;2;{r};{g};{b}m\x1b[38;2;0;0;0m{'x ' if is_crossed else '  '}\x1b[0m"
    shade = SHADES[min(len(SHADES) - 1, math.ceil(strength * (len(SHADES) - 1)))]
    return ("x" if is_crossed else "-" if value < 0 and shade != " " else " ") + shade
