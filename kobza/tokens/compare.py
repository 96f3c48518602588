"""Vocabularies side by side on one text: how many tokens, where they disagree, what one has and another lacks.

Counts depend on conventions, so they are fixed here: bytes as they are (a CRLF stays two bytes), the whole text encoded
at once, names of control tokens taken as letters, no start mark counted. Figures per byte are comparable across
vocabularies and languages; those per word (runs of letters and digits) only within a language.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace

from kobza.core.errors import BadValue, EmptyText
from kobza.core.figure import Figure
from kobza.core.result import Result
from kobza.core.table import Table
from kobza.core.texts import Text
from kobza.tokens import rates
from kobza.tokens.base import Token, Tokenizer, _as_bytes, printable

_WORD = re.compile(r"\w+")
SHOWN = 4000  # bytes of a text drawn as colored tokens
LISTED = 40  # disagreements in a whole comparison


@dataclass(frozen=True)
class Span:
    """A shortest stretch of text at whose two ends all vocabularies have a token's end.

    Attributes:
        start, end: bytes of the text, [start, end).
        tokens: the tokens of each vocabulary in it.
    """

    start: int
    end: int
    tokens: tuple[tuple[Token, ...], ...]

    @property
    def is_agreed(self) -> bool:
        """True if all cut it alike."""
        cuts = {tuple(token.end for token in tokens) for tokens in self.tokens}
        return len(cuts) == 1


def table(tokenizers: Sequence[Tokenizer], text: str | bytes | Text) -> Table:
    """Count the tokens of a text under each vocabulary.

    Args:
        tokenizers: vocabularies to compare, of different names.
        text: the sample.

    Returns:
        A row per vocabulary: ids in all, tokens, bytes a token, tokens a character and a word, and what the text would
        take in bits a byte with ids of fixed width, and coded by the frequency of its ids (their entropy, and Huffman's
        code; neither counts the table of frequencies). Its figures show the beginning of the text as tokens.

    Raises:
        EmptyText: the text is empty.
        BadValue: no vocabulary, or two of one name.
        WrongVocabulary: a vocabulary cannot express the text.
    """
    data = _data(text)
    _refuse_confusion(tokenizers)
    rows = [_row(tokenizer, data) for tokenizer in tokenizers]
    units = {"tokens": "count", "bytes a token": "B", "fixed width": "bit/B", "entropy": "bit/B", "Huffman": "bit/B"}
    plain = Counter(data)
    note = (
        f"{len(data):,} bytes; start marks are not counted. The bytes themselves: entropy {entropy(plain):.3f} bit/B, "
        f"Huffman {huffman_bits(plain) / len(data):.3f} bit/B."
    )
    return Table(rows, units=units, title="Tokens of one text", note=note, figures=figures(tokenizers, data))


def compare(tokenizers: Sequence[Tokenizer], text: str | bytes | Text) -> Result:
    """Return vocabularies side by side: counts, by script too, colored spans, overlap, disagreements.

    Raises:
        EmptyText, BadValue, WrongVocabulary: as `table`.
    """
    data = _data(text)
    counts = table(tokenizers, data)
    drawn, counts.figures = counts.figures, []
    more = [rates.by_script(tokenizers, data), overlap(tokenizers), lacking(tokenizers, data)]
    more.append(disagreements(tokenizers, data).head(LISTED))
    return Result(title="Vocabularies side by side", tables=[counts, *more], figures=drawn)


def over(tokenizers: Sequence[Tokenizer], texts: Sequence[Text]) -> Result:
    """Return vocabularies side by side on several texts: rates by text and, for each, by script; overlap.

    Raises:
        EmptyText, BadValue, WrongVocabulary: as `table`.
    """
    _refuse_confusion(tokenizers)
    tables = [rates.by_text(tokenizers, texts)]
    for text in texts:
        found = rates.by_script(tokenizers, text)
        found.title += f": {text.name}"
        tables.append(found)
    return Result(title="Vocabularies side by side", tables=[*tables, overlap(tokenizers)])


# -- one text -----------------------------------------------------------------------------------------------------
def spans(tokenizers: Sequence[Tokenizer], text: str | bytes | Text) -> Iterator[Span]:
    """Yield the text as the shortest spans that all vocabularies end together."""
    splits = [tokenizer.split(_data(text)) for tokenizer in tokenizers]
    common = set.intersection(*({token.end for token in tokens} for tokens in splits))
    at, start = [0] * len(splits), 0
    for end in sorted(common - {0}):
        taken = []
        for n, tokens in enumerate(splits):
            first = at[n]
            while at[n] < len(tokens) and tokens[at[n]].end <= end:
                at[n] += 1
            taken.append(tuple(tokens[first : at[n]]))
        yield Span(start, end, tuple(taken))
        start = end


def disagreements(tokenizers: Sequence[Tokenizer], text: str | bytes | Text) -> Table:
    """Count the spans that the vocabularies cut differently, the most frequent first.

    Returns:
        A row per different span: how often, its text, and each vocabulary's cut of it.
    """
    data = _data(text)
    found: Counter[tuple[str, ...]] = Counter()
    for span in spans(tokenizers, data):
        if not span.is_agreed:
            cuts = ("|".join(printable(token.bytes) for token in tokens) for tokens in span.tokens)
            found[(printable(data[span.start : span.end]), *cuts)] += 1
    names = [tokenizer.name for tokenizer in tokenizers]
    rows = [{"count": n, "text": shown, **dict(zip(names, cuts, strict=True))} for (shown, *cuts), n in _ranked(found)]
    order = ["count", "text", *names]
    return Table(rows, title="Where they disagree", order=order, note=f"{found.total():,} spans are cut differently.")


def lacking(tokenizers: Sequence[Tokenizer], text: str | bytes | Text) -> Table:
    """Return which share of a vocabulary's tokens in running text another does not have.

    Returns:
        A row and a column per vocabulary: of the row's running tokens, the share [fraction] that is no token of the
        column. It says how much of a text a transplant onto the row's vocabulary would have to invent.
    """
    data = _data(text)
    sets = [_ordinary(tokenizer) for tokenizer in tokenizers]
    rows = []
    for tokenizer in tokenizers:
        running = Counter(tokenizer.bytes_of(id) for id in tokenizer.encode(data))
        shares = (sum(n for token, n in running.items() if token not in other) / running.total() for other in sets)
        rows.append({"of": tokenizer.name} | dict(zip([t.name for t in tokenizers], shares, strict=True)))
    return Table(rows, title="Share of running tokens that the column lacks")


def figures(tokenizers: Sequence[Tokenizer], text: str | bytes | Text) -> list[Figure]:
    """Return a figure of colored tokens per vocabulary: one color a common span, its tokens light and dark in turn."""
    data = _data(text)
    shown = Text("", data)[:SHOWN].data
    aligned = list(spans(tokenizers, shown))
    return [_figure(tokenizer, n, aligned) for n, tokenizer in enumerate(tokenizers)]


def _figure(tokenizer: Tokenizer, n: int, aligned: Sequence[Span]) -> Figure:
    pieces = [
        {"text": _visible(token.bytes), "title": f"{token.id}: {token.bytes.hex(' ')}", "group": group}
        for group, span in enumerate(aligned)
        for token in span.tokens[n]
    ]
    caption = f"{len(pieces)} tokens. A color is a span that all vocabularies end together."
    return Figure("tokens", {"pieces": pieces}, title=tokenizer.name, caption=caption)


def _visible(data: bytes) -> str:
    # spaces and line ends keep the shape of the text; half characters are escaped
    return "".join(c if c in " \n" else printable(c.encode()) for c in data.decode("utf-8", errors="backslashreplace"))


# -- vocabularies themselves --------------------------------------------------------------------------------------
def overlap(tokenizers: Sequence[Tokenizer]) -> Table:
    """Return the share of each vocabulary's tokens whose bytes are a token of the other; control tokens do not count.

    Returns:
        A row and a column per vocabulary [fraction], and the number of different tokens of the row.
    """
    _refuse_confusion(tokenizers)
    sets = {tokenizer.name: _ordinary(tokenizer) for tokenizer in tokenizers}
    rows = [
        {"of": name, **{other: len(tokens & its) / len(tokens) for other, its in sets.items()}, "tokens": len(tokens)}
        for name, tokens in sets.items()
    ]
    return Table(rows, title="Share of tokens that the column has too", units={"tokens": "count"})


# -- figures of frequency -----------------------------------------------------------------------------------------
def entropy(counts: Counter[int]) -> float:
    """Return the entropy of the counted things in bits each.

    >>> entropy(Counter([1, 1, 2, 2]))
    1.0
    """
    total = counts.total()
    return math.log2(total) - sum(n * math.log2(n) for n in counts.values()) / total


def huffman_bits(counts: Counter[int]) -> int:
    """Return the bits that Huffman's code takes for all counted things together, without its table.

    Source: Huffman (1952), doi:10.1109/JRPROC.1952.273898.

    >>> huffman_bits(Counter("aab")), huffman_bits(Counter("aabbccd"))
    (3, 14)
    """
    weights = list(counts.values())
    if len(weights) == 1:
        return weights[0]
    heapify(weights)
    total = 0
    while len(weights) > 1:
        joined = heappop(weights) + weights[0]
        heapreplace(weights, joined)
        total += joined
    return total


def _row(tokenizer: Tokenizer, data: bytes) -> dict[str, object]:
    ids = tokenizer.encode(data)
    text = data.decode("utf-8", errors="replace")
    words = sum(1 for _ in _WORD.finditer(text))
    counts = Counter(ids)
    return {
        "vocabulary": tokenizer.name,
        "ids": len(tokenizer),
        "tokens": len(ids),
        "bytes a token": len(data) / len(ids),
        "tokens a character": len(ids) / len(text),
        "tokens a word": len(ids) / words if words else None,
        "fixed width": len(ids) * math.ceil(math.log2(len(tokenizer))) / len(data),
        "entropy": len(ids) * entropy(counts) / len(data),
        "Huffman": huffman_bits(counts) / len(data),
        "exact": tokenizer.why_not_exact or "yes",
    }


def _ranked(found: Counter[tuple[str, ...]]) -> Iterable[tuple[tuple[str, ...], int]]:
    return sorted(found.items(), key=lambda item: (-item[1], item[0]))


def _ordinary(tokenizer: Tokenizer) -> set[bytes]:
    special = set(tokenizer.special.values())
    return {data for id in range(len(tokenizer)) if id not in special and (data := tokenizer.bytes_of(id))}


def _data(text: str | bytes | Text) -> bytes:
    data = text.data if isinstance(text, Text) else _as_bytes(text)
    if not data:
        raise EmptyText("the text is empty.", "Give a text of at least one byte.")
    return data


def _refuse_confusion(tokenizers: Sequence[Tokenizer]) -> None:
    names = [tokenizer.name for tokenizer in tokenizers]
    twice = next((name for name in names if names.count(name) > 1), None)
    if not names:
        raise BadValue("no vocabulary was given.", "Give one or more: table([a, b], text).")
    if twice is not None:
        raise BadValue(f"two vocabularies are called {twice!r}.", "Set the `name` of one of them.")
