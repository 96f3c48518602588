"""How many tokens a byte, a character and a word take: in each text, and in each script of a text.

A rate a byte is comparable across languages and vocabularies; one a character across vocabularies only, one a word (a
run of letters and digits; within a script a run of its letters) only within a language.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from kobza.core.errors import BadValue, EmptyText
from kobza.core.table import Table
from kobza.core.texts import Text
from kobza.tokens import scripts
from kobza.tokens.base import Tokenizer, _as_bytes

_WORD = re.compile(r"\w+")
RATES = ("tokens a byte", "tokens a character", "tokens a word")


def by_text(tokenizers: Sequence[Tokenizer], texts: Sequence[Text]) -> Table:
    """Count tokens in several texts.

    Returns:
        A row per text and vocabulary: bytes, characters and words of the text, tokens, and tokens a byte, a character
        and a word.

    Raises:
        EmptyText: there is no text, or an empty one.
        WrongVocabulary: a vocabulary cannot express a text.
    """
    if not texts:
        raise EmptyText("there is no text to count in.", "Give one or more.")
    rows = [row for text in texts for row in _rows(tokenizers, text)]
    return Table(rows, units={"tokens": "count"}, title="Tokens by text")


def by_script(tokenizers: Sequence[Tokenizer], text: str | bytes | Text) -> Table:
    """Count tokens in each script of a text.

    A token that lies across scripts counts in each by its share of bytes, so that the rows of a vocabulary sum to its
    tokens. What belongs where: see `kobza.tokens.scripts`.

    Returns:
        A row per script and vocabulary, the script with most bytes first: as `by_text`.

    Raises:
        EmptyText: the text is empty.
        WrongVocabulary: a vocabulary cannot express the text.
    """
    data = text.data if isinstance(text, Text) else _as_bytes(text)
    if not data:
        raise EmptyText("the text is empty.", "Give a text of at least one byte.")
    kinds, sizes, words = scripts.classes(data)
    owners = np.repeat(kinds, sizes)  # (bytes,)
    count = len(scripts.NAMES)
    sizes_by, characters = (np.bincount(what, minlength=count) for what in (owners, kinds))
    taken = [(tokenizer, _shares(tokenizer, data, owners, count)) for tokenizer in tokenizers]
    rows = []
    for kind in sorted(np.flatnonzero(sizes_by).tolist(), key=lambda kind: -sizes_by[kind]):
        facts = {"bytes": int(sizes_by[kind]), "characters": int(characters[kind]), "words": int(words[kind]) or None}
        for tokenizer, tokens in taken:
            row = {"script": scripts.NAMES[kind], "vocabulary": tokenizer.name, **facts}
            rows.append(row | _rates(facts, None if tokens is None else float(tokens[kind])))
    note = "A token across scripts counts in each by its share of bytes; a space in front of a word counts with it."
    return Table(rows, units={"tokens": "count"}, title="Tokens by script", note=note)


def wide(table: Table, rows: str, value: str, columns: str = "vocabulary") -> Table:
    """Return one figure of a long table with a column per vocabulary.

    Args:
        table: what `by_text` or `by_script` returned.
        rows: column whose values become rows: "text" or "script".
        value: column whose values fill the cells.
        columns: column whose values become columns.
    """
    found: dict[Any, dict[str, Any]] = {}
    for row in (row for row in table if row[value] is not None):
        found.setdefault(row[rows], {rows: row[rows], "size": row["bytes"]})[str(row[columns])] = row[value]
    return Table(found.values(), units={"size": "B"}, title=value[0].upper() + value[1:], note=table.note)


def _rows(tokenizers: Sequence[Tokenizer], text: Text) -> list[dict[str, Any]]:
    if not text.data:
        raise EmptyText(f"the text {text.name!r} is empty.", "Give a text of at least one byte.")
    words = sum(1 for _ in _WORD.finditer(text.string))
    facts = {"bytes": len(text), "characters": len(text.string), "words": words or None}
    return [
        {"text": text.name, "vocabulary": tokenizer.name, **facts}
        | _rates(facts, float(len(tokenizer.encode(text.data))))
        for tokenizer in tokenizers
    ]


def _rates(facts: dict[str, int | None], tokens: float | None) -> dict[str, Any]:
    of = (facts["bytes"], facts["characters"], facts["words"])
    each = [tokens / n if tokens is not None and n else None for n in of]
    return {"tokens": tokens} | dict(zip(RATES, each, strict=True))


def _shares(tokenizer: Tokenizer, data: bytes, owners: scripts.Ints, count: int) -> Any:
    """Return tokens by script (count,), or None where the tokenizer alters the text, so that tokens have no place."""
    tokens = tokenizer.split(data)
    ends = np.array([token.end for token in tokens], dtype=np.int64)
    if not len(ends) or ends[-1] != len(data):
        return None
    sizes = np.diff(ends, prepend=0)
    found = np.bincount(owners, weights=np.repeat(1 / np.maximum(sizes, 1), sizes), minlength=count)
    # the space put in front of a text can be a token of its own, which covers none of it
    empty = ends[sizes == 0]
    np.add.at(found, owners[np.minimum(empty, len(owners) - 1)], 1)
    return found


def same_names(texts: Sequence[Text]) -> None:
    """Raise if two texts have one name.

    Raises:
        BadValue: they do.
    """
    names = [text.name for text in texts]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadValue(f"the text {twice!r} was given twice.")
