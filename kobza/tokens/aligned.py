"""Tokens of several vocabularies under each other as HTML: what covers the same bytes stands in the same column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from kobza.core.errors import BadValue
from kobza.core.render import Html
from kobza.core.texts import Text
from kobza.tokens.base import Token, Tokenizer, printable
from kobza.tokens.compare import Span, spans

WIDTH = 118  # characters of a line of cells; a span wider than that has a line of its own
STYLE = """
.aligned{margin:1em 0 1.4em;overflow-x:auto}
.kobza .aligned table{margin:0 0 .9em;font-size:13px;line-height:1.25}
.kobza .aligned th,.kobza .aligned td{border:0;padding:.14em .12em;vertical-align:top}
.kobza .aligned th{font-weight:400;color:var(--soft);padding-right:.9em;position:sticky;left:0;background:var(--ground)}
.kobza .aligned tr:hover td{background:none}
.kobza .aligned td.x{box-shadow:inset 0 0 0 1.5px #d55e00;border-radius:4px}
.aligned i{display:inline-block;font-style:normal;border-radius:3px;padding:.1em .18em;margin-right:1px}
.aligned i{background:hsl(var(--h) 85% 50% / 20%)}
.aligned i:nth-child(2n){background:hsl(var(--h) 85% 50% / 38%)}
.aligned b{display:block;font:13px/1.35 ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace;white-space:pre}
.aligned small{display:block;font-size:10px;color:var(--soft);font-variant-numeric:tabular-nums}
.aligned .m i{background:none;outline:1px dashed var(--soft);outline-offset:-1px}
"""


def html(tokenizers: Sequence[Tokenizer], text: str | bytes | Text, *, width: int = WIDTH) -> Html:
    """Return the tokens of a text with their ids, a row per vocabulary.

    Equal colors are equal spans; a frame says that a vocabulary cuts a span otherwise than most do. The start mark of a
    vocabulary that is used with one stands in front, with a dashed outline.

    Args:
        tokenizers: vocabularies of different names.
        text: the sample; some thousand bytes at most, since each token is drawn.
        width: characters of a line [count, 20 ..].
    """
    if width < 20:
        raise BadValue(f"width is {width}; a line has at least 20 characters.")
    found = list(spans(tokenizers, text))
    columns = [_marks(tokenizers)] if any(t.marks.adds_start for t in tokenizers) else []
    columns += [_column(tokenizers, span, number) for number, span in enumerate(found)]
    lines = (_line(tokenizers, columns[first:last]) for first, last in blocks([c.width for c in columns], width))
    return Html(f'<div class="aligned"><style>{STYLE}</style>{"".join(lines)}</div>')


def blocks(widths: Sequence[int], room: int) -> Iterator[tuple[int, int]]:
    """Yield [first, last) of the columns that fit into one line; a column wider than the room has a line of its own.

    >>> list(blocks([3, 3, 3, 9], 7))
    [(0, 2), (2, 3), (3, 4)]
    """
    first, used = 0, 0
    for i, width in enumerate(widths):
        if i > first and used + 1 + width > room:
            yield first, i
            first, used = i, 0
        used += width + (i > first)
    if first < len(widths):
        yield first, len(widths)


@dataclass(frozen=True)
class _Column:
    """One column: its cells as HTML, a row per vocabulary, and its width in characters."""

    cells: list[str]
    width: int


def _marks(tokenizers: Sequence[Tokenizer]) -> _Column:
    ids = [tokenizer.start_id if tokenizer.marks.adds_start else None for tokenizer in tokenizers]
    shown = ["" if id is None else t.show(id) for t, id in zip(tokenizers, ids, strict=True)]
    cells = ("" if id is None else _token(name, id) for name, id in zip(shown, ids, strict=True))
    return _Column([f'<td class="m">{cell}</td>' for cell in cells], max(map(len, shown)))


def _column(tokenizers: Sequence[Tokenizer], span: Span, number: int) -> _Column:
    cuts = [tuple(token.end for token in tokens) for tokens in span.tokens]
    usual = Counter(cuts).most_common(1)[0][0]
    cells = []
    for tokens, cut in zip(span.tokens, cuts, strict=True):
        inner = "".join(_token(printable(token.bytes), token.id) for token in tokens)
        frame = "" if cut == usual else ' class="x"'
        cells.append(f'<td{frame} style="--h:{number * 67 % 360}">{inner}</td>')
    return _Column(cells, max(sum(map(_width, tokens)) for tokens in span.tokens))


def _token(shown: str, id: int) -> str:
    return f"<i><b>{escape(shown)}</b><small>{id}</small></i>"


def _width(token: Token) -> int:
    """Characters a token takes: its text, or its id in smaller digits, and the gap."""
    return max(len(printable(token.bytes)), round(0.7 * len(str(token.id)))) + 1


def _line(tokenizers: Sequence[Tokenizer], columns: Sequence[_Column]) -> str:
    rows = (
        f"<tr><th>{escape(tokenizer.name)}</th>" + "".join(column.cells[n] for column in columns) + "</tr>"
        for n, tokenizer in enumerate(tokenizers)
    )
    return f"<table>{''.join(rows)}</table>"
