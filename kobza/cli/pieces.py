"""A text as its tokens: a table, or the text itself with the tokens told apart by color."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from kobza.core.table import Table

if TYPE_CHECKING:
    from kobza.tokens.base import Tokenizer

COLORS = (45, 43, 42, 46, 44)  # backgrounds, taken in turn
BAR = "|"


def token_table(tokenizer: Tokenizer, data: bytes) -> Table:
    """Return a row per token: place, id, what it looks like, its bytes and where they stand; the start mark first."""
    rows = []
    if tokenizer.start_id is not None:
        rows.append(_row(None, tokenizer.start_id, tokenizer.show(tokenizer.start_id), b"", 0, True))
    for i, token in enumerate(tokenizer.split(data)):
        rows.append(_row(i, token.id, tokenizer.show(token.id), token.bytes, token.start, token.special))
    count = sum(row["place"] is not None for row in rows)
    note = f"{count} tokens, {len(data)} bytes, {len(data) / max(count, 1):.2f} bytes a token"
    return Table(rows, title=f"Tokens of {tokenizer.name}", note=note)


def colored(tokenizer: Tokenizer, data: bytes) -> str:
    """Return the text cut into tokens: backgrounds in turn on a terminal that has colors, else bars between."""
    pieces = [tokenizer.show(token.id) for token in tokenizer.split(data)]
    start = [f"[{tokenizer.show(tokenizer.start_id)}]"] if tokenizer.start_id is not None else []
    if not has_colors():
        return BAR.join([*start, *pieces])
    painted = [f"\x1b[{COLORS[i % len(COLORS)]}m{piece}\x1b[0m" for i, piece in enumerate(pieces)]
    return "".join([*(f"\x1b[2m{mark}\x1b[0m" for mark in start), *painted])


def has_colors() -> bool:
    """Say whether standard output is a terminal that wants colors (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _row(place: int | None, id: int, shown: str, data: bytes, start: int, special: bool) -> dict[str, object]:
    kind = "start mark" if place is None else "special" if special else None
    return {
        "place": place,
        "id": id,
        "token": shown,
        "bytes": data.hex(" "),
        "from": start if place is not None else None,
        "kind": kind,
    }
