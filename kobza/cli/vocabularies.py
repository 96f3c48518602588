"""Vocabularies side by side: tables and colored texts, or lines in which equal spans stand in one column."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

from kobza.cli.pieces import BAR, COLORS, has_colors
from kobza.core.errors import BadValue

if TYPE_CHECKING:
    from kobza.tokens.base import Tokenizer
    from kobza.tokens.compare import Span


def side_by_side(names: Sequence[str], data: bytes, *, pieces: bool = False) -> Any:
    """Open vocabularies and compare them on a text.

    Args:
        names: what `kobza.vocabulary` opens.
        data: the text.
        pieces: return lines of aligned tokens instead of the Result.
    """
    from kobza.models.vocabulary import vocabulary
    from kobza.tokens import compare

    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise BadValue("--with names no vocabulary.", "Give one or more: --with smollm2,o200k_base.tiktoken,bytes")
    tokenizers = [vocabulary(name) for name in names]
    if not pieces:
        return compare.compare(tokenizers, data)
    return "\n\n".join(lines(tokenizers, list(compare.spans(tokenizers, data))))


def lines(tokenizers: Sequence[Tokenizer], spans: Sequence[Span]) -> Iterator[str]:
    """Yield blocks of one line per vocabulary, no wider than the terminal; a span has the same column in all."""
    head = max(len(tokenizer.name) for tokenizer in tokenizers) + 2
    room = max(get_terminal_size((100, 24)).columns - head, 20)
    painted = has_colors()
    cells = [[BAR.join(_shown(t, span.tokens[n])) for n, t in enumerate(tokenizers)] for span in spans]
    for first, last in _blocks([max(map(len, cell)) for cell in cells], room):
        block = []
        for n, tokenizer in enumerate(tokenizers):
            row = [(i, cells[i][n], max(map(len, cells[i]))) for i in range(first, last)]
            text = " ".join(_paint(cell.ljust(width), i) if painted else cell.ljust(width) for i, cell, width in row)
            block.append(f"{tokenizer.name.ljust(head)}{text}".rstrip())
        yield "\n".join(block)


def _shown(tokenizer: Tokenizer, tokens: Sequence[Any]) -> list[str]:
    return [tokenizer.show(token.id) for token in tokens]


def _paint(cell: str, number: int) -> str:
    return f"\x1b[{COLORS[number % len(COLORS)]}m{cell}\x1b[0m"


def _blocks(widths: Sequence[int], room: int) -> Iterator[tuple[int, int]]:
    """Yield [first, last) of the columns that fit into one line; a column wider than the room has a line of its own."""
    first, used = 0, 0
    for i, width in enumerate(widths):
        if i > first and used + 1 + width > room:
            yield first, i
            first, used = i, 0
        used += width + (i > first)
    if first < len(widths):
        yield first, len(widths)
