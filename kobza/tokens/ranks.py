"""Vocabularies of byte ranks: files `.tiktoken`, byte pair encoding in which a token's id is its rank.

A text is cut by a regular expression, and in each piece the two neighbors whose bytes together have the lowest rank
are joined, the leftmost first, until no two can be. With the package `tiktoken` installed its engine does this; else
`tokenizers` does, given for each token the one pair that it can arise from, which yields equal ids.

Source: Sennrich et al. (2016), arXiv:1508.07909; GPT-2's byte-level variant, Radford et al. (2019), section 2.2.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import tokenizers

from kobza.core.errors import BadValue, Corrupt, EmptyText, Truncated
from kobza.core.files import sha256, write_atomic
from kobza.tokens.alphabet import byte_to_character
from kobza.tokens.base import Marks, Tokenizer
from kobza.tokens.patterns import PATTERNS

Merge = tuple[bytes, bytes]
# subtle: tiktoken's regular expressions overflow their stack on runs of some 100,000 spaces; the whole thread panics
_LONG_SPACE = 5000  # characters; a run twice as long fills one aligned block of that many


class Ranked(Tokenizer):
    """A vocabulary of byte ranks.

    Args:
        ranks: id of every token, by its bytes; all 256 single bytes must be there.
        pattern: regular expression that cuts a text before merging; "none" and other names of `PATTERNS` work.
        special: control tokens by name.
        marks: which of them start and end a text.
        merges: the pairs the tokens arise from, in order of rank, where they are known; else they are derived.
        name: what to call it in messages.

    Raises:
        Corrupt: a byte has no token, or a control token's id is taken.
    """

    def __init__(
        self,
        ranks: Mapping[bytes, int],
        pattern: str,
        special: Mapping[str, int] | None = None,
        marks: Marks | None = None,
        *,
        merges: Sequence[Merge] | None = None,
        name: str = "ranks",
    ) -> None:
        self.ranks = dict(ranks)
        self.pattern = PATTERNS.get(pattern, pattern)
        self.marks = marks or Marks()
        self.name = name
        self._special = dict(special or {})
        self._merges = None if merges is None else list(merges)
        self._check()

    def _check(self) -> None:
        refuse_lacking(self.ranks, self.name)
        taken = set(self.ranks.values()) & set(self._special.values())
        if taken:
            raise Corrupt(f"'{self.name}' gives the id {min(taken)} to a token and to a control token.")

    # -- what is in it -----------------------------------------------------------------------------------------
    @cached_property
    def merges(self) -> list[Merge]:
        """The pair of tokens each longer token arises from, in order of rank; tokens that cannot arise are left out."""
        if self._merges is not None:
            return self._merges
        split = (_halves(token, self.ranks) for token in sorted(self.ranks, key=self.ranks.__getitem__))
        return [pair for pair in split if pair]

    @property
    def special(self) -> dict[str, int]:
        """Control tokens by their name."""
        return self._special

    @cached_property
    def _backend(self) -> tokenizers.Tokenizer:  # type: ignore[override]
        # made only where it is needed: 3 s for 200,000 tokens
        return backend_of(self.ranks, self.merges, self.pattern, self._special)

    @cached_property
    def _parts(self) -> dict[str, Any]:
        return {"model": {"type": "BPE"}, "pre_tokenizer": {"type": "ByteLevel"}, "decoder": {"type": "ByteLevel"}}

    @cached_property
    def _bytes(self) -> list[bytes]:
        table = [b""] * len(self)
        for token, id in self.ranks.items():
            table[id] = token
        for name, id in self._special.items():
            table[id] = name.encode()
        return table

    @cached_property
    def _size(self) -> int:
        return 1 + max(max(self.ranks.values()), max(self._special.values(), default=0))

    def _name(self, id: int | None) -> str:
        return next((name for name, its in self._special.items() if its == id), "")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of ranks, pattern, control tokens and marks."""
        ranks = sorted((id, token.hex()) for token, id in self.ranks.items())
        return sha256(repr((ranks, self.pattern, sorted(self._special.items()), self.marks)).encode())

    # -- encoding ----------------------------------------------------------------------------------------------
    @cached_property
    def _engine(self) -> Any:
        """tiktoken's encoder, or None where the package is not installed."""
        return None if importlib.util.find_spec("tiktoken") is None else self._tiktoken(self.pattern)

    @cached_property
    def _uncut_engine(self) -> Any:
        """tiktoken's encoder for single pieces, which it does not cut."""
        return self._tiktoken(PATTERNS["none"])

    def _tiktoken(self, pattern: str) -> Any:
        library = importlib.import_module("tiktoken")
        try:
            return library.Encoding(
                name=self.name, pat_str=pattern, mergeable_ranks=self.ranks, special_tokens=self._special
            )
        except ValueError as error:
            raise BadValue(f"the split pattern {pattern!r} is not a regular expression: {error}.") from None

    def _encode_valid(self, text: str, at: int = 0) -> list[int]:
        if self._engine is None:
            backend = self._backend
            backend.encode_special_tokens = True
            return list(backend.encode(text, add_special_tokens=False).ids)
        if _has_long_space(text):
            regex = importlib.import_module("regex")
            pieces = (found[0] for found in regex.finditer(self.pattern, text))
            return [id for piece in pieces for id in self._uncut_engine.encode_ordinary(piece)]
        ids: list[int] = self._engine.encode_ordinary(text)
        return ids

    # -- files -------------------------------------------------------------------------------------------------
    def save_ranks(self, path: str | Path) -> Path:
        """Write a `.tiktoken` file; the split pattern and the control tokens are not part of that format."""
        return write_atomic(path, ranks_text(self.ranks))


def read_ranks(data: bytes, where: str) -> dict[bytes, int]:
    """Read the text of a `.tiktoken` file: a line per token, its bytes in base64, a space, its rank.

    Raises:
        EmptyText: there is no token.
        Truncated: the last line breaks off.
        Corrupt: a line is not of this form, or a token or a rank comes twice.
    """
    lines = data.splitlines()
    if not lines:
        raise EmptyText(f"'{where}' is empty, so it is not a vocabulary.")
    ranks: dict[bytes, int] = {}
    for n, line in enumerate(lines):
        if line:
            token, rank = _rank(line, where, n, is_cut=n == len(lines) - 1 and not data.endswith(b"\n"))
            if token in ranks:
                raise Corrupt(f"'{where}' has the token {token!r} twice (line {n + 1}).")
            ranks[token] = rank
    _refuse_twice(ranks, where)
    return ranks


def _rank(line: bytes, where: str, n: int, *, is_cut: bool) -> tuple[bytes, int]:
    try:
        token, rank = line.split()
        return base64.b64decode(token, validate=True), _number(rank)
    except (ValueError, binascii.Error):
        if is_cut:
            raise Truncated(f"'{where}' breaks off in line {n + 1}.", "Fetch the file again.") from None
        form = "a token in base64, a space and its rank"
        raise Corrupt(f"line {n + 1} of '{where}' is {line[:40]!r}; it must be {form}.") from None


def _number(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 9:
        raise ValueError(digits)
    return int(digits)


def _refuse_twice(ranks: Mapping[bytes, int], where: str) -> None:
    seen: dict[int, bytes] = {}
    for token, rank in ranks.items():
        if rank in seen:
            raise Corrupt(f"'{where}' gives the rank {rank} to {seen[rank]!r} and to {token!r}.")
        seen[rank] = token
    if max(seen) > 4 * len(seen):
        raise Corrupt(f"'{where}' has {len(seen)} tokens but ranks up to {max(seen)}.")


def refuse_lacking(ranks: Mapping[bytes, int], where: str) -> None:
    """Raise if a single byte has no token.

    Raises:
        Corrupt: it has none.
    """
    lacking = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if lacking:
        raise Corrupt(
            f"'{where}' has no token for {len(lacking)} of the 256 bytes (the first is 0x{lacking[0]:02x}).",
            "Byte pair encoding starts from single bytes: the file is damaged or not a vocabulary of bytes.",
        )


def ranks_text(ranks: Mapping[bytes, int]) -> bytes:
    """Return ranks as the text of a `.tiktoken` file, in order of rank.

    >>> ranks_text({b"a": 0, b" the": 1})
    b'YQ== 0\\nIHRoZQ== 1\\n'
    """
    return b"".join(b"%s %d\n" % (base64.b64encode(t), ranks[t]) for t in sorted(ranks, key=ranks.__getitem__))


def byte_ranks() -> dict[bytes, int]:
    """Return the 256 single bytes, ranked as GPT-2 does: those with a printable character of their own first."""
    table = byte_to_character()
    return {bytes([byte]): rank for rank, byte in enumerate(sorted(table, key=table.__getitem__))}


def bytes_vocabulary() -> Ranked:
    """Return the vocabulary whose 256 tokens are the bytes themselves, each its own number."""
    return Ranked({bytes([byte]): byte for byte in range(256)}, "none", merges=[], name="bytes")


def backend_of(
    ranks: Mapping[bytes, int], merges: Iterable[Merge], pattern: str, special: Mapping[str, int]
) -> tokenizers.Tokenizer:
    """Build the equal tokenizer of the library `tokenizers`, whose JSON transformers opens.

    Raises:
        BadValue: the library cannot read the pattern.
    """
    pairs = [(_spelled(left), _spelled(right)) for left, right in merges]
    vocab = {_spelled(token): id for token, id in ranks.items()} | dict(special)
    # a piece that is a token as a whole is taken as it is, even where merging cannot reach it
    model = tokenizers.models.BPE(vocab=vocab, merges=pairs, ignore_merges=len(pairs) + 256 < len(ranks))
    backend = tokenizers.Tokenizer(model)
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    steps: list[Any] = [byte_level]
    if pattern != PATTERNS["none"]:
        steps.insert(0, tokenizers.pre_tokenizers.Split(_regex(pattern), "isolated"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(steps)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in special])
    return backend


def _regex(pattern: str) -> tokenizers.Regex:
    try:
        return tokenizers.Regex(pattern)
    except Exception as error:  # noqa: BLE001  # the library raises bare Exceptions
        raise BadValue(f"the split pattern {pattern!r} is not a regular expression: {error}.") from None


def _has_long_space(text: str) -> bool:
    """Say whether there may be a run of spaces that is too long for tiktoken; most blocks end the look at once."""
    return any(text[at : at + _LONG_SPACE].isspace() for at in range(0, len(text) - _LONG_SPACE + 1, _LONG_SPACE))


def _spelled(token: bytes) -> str:
    table = byte_to_character()
    return "".join(table[byte] for byte in token)


def _halves(token: bytes, ranks: Mapping[bytes, int]) -> Merge | None:
    """Return the two tokens from which merging makes this one, or None if it is a byte or never arises."""
    rank = ranks[token]
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
        lowest = min(joined)
        if lowest >= rank:
            return None
        at = joined.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return (parts[0], parts[1]) if len(parts) == 2 else None
