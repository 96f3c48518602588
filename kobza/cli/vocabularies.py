"""Vocabularies side by side: tables and colored texts, or lines in which equal spans stand in one column."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

from kobza.cli.pieces import BAR, COLORS, has_colors
from kobza.core.errors import BadValue

if TYPE_CHECKING:
    from kobza.core.texts import Text
    from kobza.tokens.base import Tokenizer
    from kobza.tokens.compare import Span


def side_by_side(names: Sequence[str], data: Sequence[Text], *, pieces: bool = False, page: Path | None = None) -> Any:
    """Open vocabularies and compare them on texts.

    Args:
        names: what `kobza.vocabulary` opens.
        data: the texts.
        pieces: return lines of aligned tokens instead of the Result.
        page: also write the page of everything to this file.
    """
    from kobza.models.vocabulary import vocabulary
    from kobza.tokens import compare, rates

    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise BadValue("--with names no vocabulary.", "Give one or more: --with smollm2,o200k_base.tiktoken,bytes")
    if page is not None:
        _require_page(page)
    rates.same_names(data)
    tokenizers = [vocabulary(name) for name in names]
    if pieces:
        return "\n\n".join(block for text in data for block in lines(tokenizers, list(compare.spans(tokenizers, text))))
    if page is not None:
        _write_page(tokenizers, data, page)
    if len(data) == 1:
        return compare.compare(tokenizers, data[0])
    return compare.over(tokenizers, data)


def _require_page(path: Path) -> None:
    from kobza.cli.show import require_writable

    if path.suffix.lower() != ".html":
        raise BadValue(f"--page writes HTML, not {path.suffix or path.name!r}.", "Name a file that ends in .html.")
    require_writable(path)


def _write_page(tokenizers: Sequence[Tokenizer], data: Sequence[Text], path: Path) -> None:
    from kobza.cli import vocabulary_page
    from kobza.core.files import write_atomic

    command = f"kobza tokens ... --with {','.join(t.name for t in tokenizers)} --page {path.name}"
    write_atomic(path, vocabulary_page.page(tokenizers, data, command))
    sys.stderr.write(f"wrote {path}\n")


def lines(tokenizers: Sequence[Tokenizer], spans: Sequence[Span]) -> Iterator[str]:
    """Yield blocks of one line per vocabulary, no wider than the terminal; a span has the same column in all."""
    head = max(len(tokenizer.name) for tokenizer in tokenizers) + 2
    room = max(get_terminal_size((100, 24)).columns - head, 20)
    from kobza.tokens.aligned import blocks

    painted = has_colors()
    cells = [[BAR.join(_shown(t, span.tokens[n])) for n, t in enumerate(tokenizers)] for span in spans]
    for first, last in blocks([max(map(len, cell)) for cell in cells], room):
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
