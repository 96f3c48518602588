"""Bytes as token ids, and literal bytes where tokens cannot say them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kobza.core.errors import KobzaError

SURROGATES = re.compile("([\udc80-\udcff]+)")


class Vocabulary(Protocol):
    """What spelling needs of a tokenizer.

    `encode` may alter or refuse (KobzaError) what it cannot say; `decode` gives the exact bytes of a run of ids.
    """

    @property
    def fingerprint(self) -> str: ...

    def encode(self, text: str, /) -> list[int]: ...

    def decode(self, ids: Sequence[int], /) -> bytes: ...


@dataclass(frozen=True)
class Spelled:
    """Any bytes, as tokens and literals.

    Attributes:
        ids: the tokens (T).
        literals: (number of tokens before it, bytes), in order; numbers 0 .. T. The tokens between two literals are
            decoded as one run; an empty literal only parts two runs.
    """

    ids: list[int]
    literals: list[tuple[int, bytes]] = field(default_factory=list)

    @property
    def literal_bytes(self) -> int:
        """Bytes that no token says."""
        return sum(len(literal) for _, literal in self.literals)


def spell(data: bytes, vocabulary: Vocabulary) -> Spelled:
    """Return tokens and literals that stand for exactly `data`.

    Whatever the tokenizer gives back changed (invalid UTF-8, characters it has no bytes for, text it normalizes) is
    narrowed down to single characters, which become literals; the rest stays tokens.

    >>> spell(b"sea \\xff sea", tokenizer).literals
    [(2, b'\\xff')]
    """
    ids: list[int] = []
    literals: list[tuple[int, bytes]] = []
    for piece in _pieces(data, vocabulary):
        tokens, literal = (piece, b"") if isinstance(piece, list) else ([], piece)
        if literals and literals[-1][0] == len(ids):
            literals[-1] = (len(ids), literals[-1][1] + literal)
        elif ids or literal:
            literals.append((len(ids), literal))
        ids += tokens
    return Spelled(ids, literals)


def unspell(spelled: Spelled, vocabulary: Vocabulary) -> bytes:
    """Return the bytes that tokens and literals stand for."""
    return b"".join(vocabulary.decode(run) + literal for run, literal in runs(spelled))


def runs(spelled: Spelled) -> Iterator[tuple[list[int], bytes]]:
    """Yield every run of tokens with the literal that follows it."""
    place = 0
    for before, literal in spelled.literals:
        yield spelled.ids[place:before], literal
        place = before
    yield spelled.ids[place:], b""


def _pieces(data: bytes, vocabulary: Vocabulary) -> Iterator[list[int] | bytes]:
    text = data.decode("utf-8", errors="surrogateescape")
    for piece in SURROGATES.split(text):
        if piece and "\udc80" <= piece[0] <= "\udcff":
            yield piece.encode("utf-8", errors="surrogateescape")
        elif piece:
            yield from _narrowed(piece, vocabulary)


def _narrowed(text: str, vocabulary: Vocabulary) -> Iterator[list[int] | bytes]:
    raw = text.encode()
    ids = _exact(text, raw, vocabulary)
    if ids is not None:
        yield ids
    elif len(text) == 1:
        yield raw
    else:
        yield from _narrowed(text[: len(text) // 2], vocabulary)
        yield from _narrowed(text[len(text) // 2 :], vocabulary)


def _exact(text: str, raw: bytes, vocabulary: Vocabulary) -> list[int] | None:
    try:
        ids = vocabulary.encode(text)
    except KobzaError:
        return None
    return ids if len(ids) <= len(raw) and vocabulary.decode(ids) == raw else None
