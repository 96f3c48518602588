"""The one HTML renderer: it serves notebooks (`_repr_html_`), saved pages and, later, the browser's page alike.

Everything it makes is self-contained and needs no network; every text is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from kobza.core.figure import Figure
from kobza.core.result import Reading, Result
from kobza.core.table import Table, show

ROWS_SHOWN = 200  # a longer table says how many rows it leaves out
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


class Html(str):
    """Text that is HTML already and is not escaped again."""


def html(thing: Any) -> str:
    """Return a fragment with its own style, fit for a notebook cell."""
    return f'<div class="kobza"><style>{style()}</style>{fragment(thing)}</div>'


def page(title: str, blocks: Iterable[Any], *, lead: str = "") -> str:
    """Return one self-contained page.

    Args:
        title: heading and window title.
        blocks: tables, readings, results, figures, texts (a paragraph each) and `Html`.
        lead: one or two sentences under the heading.
    """
    body = "\n".join(fragment(block) for block in blocks)
    intro = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><title>{escape(title)}</title>'
        f'<link rel="icon" href="data:,"><style>{style()}</style></head>\n'
        f'<body class="kobza"><main><h1>{escape(title)}</h1>{intro}\n{body}\n</main></body></html>\n'
    )


def fragment(thing: Any) -> str:
    """Return one thing as HTML without style."""
    if isinstance(thing, Html):
        return str(thing)
    if isinstance(thing, Table):
        return _table(thing) + "".join(_figure(f) for f in thing.figures)
    if isinstance(thing, Reading):
        return _readings([thing])
    if isinstance(thing, Result):
        return _result(thing)
    if isinstance(thing, Figure):
        return _figure(thing)
    if isinstance(thing, (list, tuple)) and thing and all(isinstance(t, Reading) for t in thing):
        return _readings(thing)
    return f"<p>{escape(str(thing))}</p>"


@cache
def style() -> str:
    """Return the style sheet."""
    return asset("page.css")


@cache
def asset(name: str) -> str:
    """Return one of kobza's own text assets."""
    return (Path(__file__).parent / "assets" / name).read_text(encoding="utf-8")


def heading(text: str, level: int = 2) -> Html:
    """Return a heading with an anchor made from its words."""
    anchor = "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())
    return Html(f'<h{level} id="{escape(anchor, quote=True)}">{escape(text)}</h{level}>')


def _table(table: Table) -> str:
    numeric = {c: table._is_number(c) for c in table.columns}
    mark = {c: ' class="n"' if numeric[c] else "" for c in table.columns}
    head = "".join(f"<th{mark[c]}>{escape(c)}{_unit(table, c)}</th>" for c in table.columns)
    rows = (
        "<tr>" + "".join(f"<td{mark[c]}>{escape(show(row.get(c)))}</td>" for c in table.columns) + "</tr>"
        for row in table.rows[:ROWS_SHOWN]
    )
    left = len(table) - ROWS_SHOWN
    notes = [table.note] if table.note else []
    notes += [f"{left:,} further rows are not shown; the saved table has all {len(table):,}."] if left > 0 else []
    caption = f"<caption>{escape(table.title)}</caption>" if table.title else ""
    body = f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="wide">{body}</div>' + "".join(f'<p class="note">{escape(n)}</p>' for n in notes)


def _unit(table: Table, column: str) -> str:
    return f" <small>{escape(table.units[column])}</small>" if table.units.get(column) else ""


def _readings(readings: Iterable[Reading]) -> str:
    return '<div class="readings">' + "".join(map(_reading, readings)) + "</div>"


def _reading(reading: Reading) -> str:
    span = f"{show(reading.low)} .. {show(reading.high)}" if reading.low is not None else ""
    below = " &middot; ".join(escape(t) for t in (span, reading.note) if t)
    how = "; ".join(f"{k}: {v}" for k, v in {"spread": reading.spread, **reading.record}.items() if v)
    value = f"<b>{escape(show(reading.value))} <small>{escape(reading.unit)}</small></b>"
    name = f"<span>{escape(reading.name)}</span>"
    return f'<div class="reading" title="{escape(how, quote=True)}">{name}{value}<span>{below}</span></div>'


def _result(result: Result) -> str:
    parts = [str(heading(result.title))] if result.title else []
    parts += [_readings(result.readings)] if result.readings else []
    parts += [fragment(thing) for thing in (*result.figures, *result.tables)]
    parts += [_sample(sample) for sample in result.samples]
    if result.made_by:
        rows = Table([{"what": k, "value": str(v)} for k, v in result.made_by.items()])
        parts.append(f"<details><summary>how this was made</summary>{_table(rows)}</details>")
    return "".join(parts)


def _sample(sample: dict[str, str]) -> str:
    title = f"<h3>{escape(sample['title'])}</h3>" if sample.get("title") else ""
    prompt = f"<b>{escape(sample['prompt'])}</b>" if sample.get("prompt") else ""
    return f"{title}<pre>{prompt}{escape(sample.get('text', ''))}</pre>"


def _figure(figure: Figure) -> str:
    if figure.kind == "tokens":
        drawn = _tokens(figure)
    elif figure.kind == "map":
        from kobza.core.map_html import map_html

        drawn = map_html(figure)
    else:
        drawn = figure.svg()
    caption = f"<figcaption>{escape(figure.caption)}</figcaption>" if figure.caption else ""
    return f"<figure>{drawn}{caption}</figure>"


def _tokens(figure: Figure) -> str:
    pieces = figure.data["pieces"]
    top = max((abs(p["value"]) for p in pieces if p.get("value") is not None), default=1.0) or 1.0
    spans = []
    for number, piece in enumerate(pieces):
        value = piece.get("value")
        # without values the ground alternates over six hues, so that neighbors differ; pieces of one group share a hue
        group = piece.get("group")
        plain = (number * 67 % 360, 26) if group is None else (group * 67 % 360, 22 + 22 * (number % 2))
        hue, strength = (28, 62 * abs(value) / top) if value is not None else plain
        ground = f"background:hsl({hue} 85% 50% / {strength:.0f}%)"
        title = f' title="{escape(str(piece["title"]), quote=True)}"' if piece.get("title") else ""
        spans.append(f'<i style="{ground}"{title}>{_visible(piece["text"])}</i>')
    head = f"<h3>{escape(figure.title)}</h3>" if figure.title else ""
    return f'{head}<div class="tokens">{"".join(spans)}</div>'


def _visible(text: str) -> str:
    lines = text.split("\n")
    # the line break itself stays, so that the text keeps its shape
    return "\u21b5\n".join(escape(show(line)) for line in lines)
