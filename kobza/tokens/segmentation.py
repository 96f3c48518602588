"""Three ways to cut a word with one vocabulary: its own merges, the longest match from the left, the fewest tokens.

Byte pair encoding is greedy in time (the earliest merges first), longest match is greedy in place; neither gives the
fewest tokens. How often they differ says how much of a vocabulary its own encoder leaves unused.

Source: Uzan et al. (2024), "Greed is All You Need", arXiv:2403.01289, which compares the three; longest match is
WordPiece's, Wu et al. (2016), arXiv:1609.08144.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from kobza.core.errors import BadValue
from kobza.core.table import Table
from kobza.core.texts import Text
from kobza.tokens.base import Tokenizer, printable
from kobza.tokens.pairs import parts
from kobza.tokens.ranks import Ranked

_WORDS = re.compile(r" ?\w+")


def table(tokenizer: Tokenizer, text: str | bytes | Text) -> Table:
    """Cut the words of a text in three ways and count how often the ways differ from the tokenizer's own.

    Args:
        tokenizer: a vocabulary; words are encoded one by one, with the space in front of them.
        text: the sample.

    Returns:
        A row per way: tokens of all words, and the share of running and of different words that it cuts otherwise.
    """
    counts = _counted(tokenizer, text)
    own = {word: _own(tokenizer, word) for word in counts}
    known = {data for id in range(len(tokenizer)) if (data := tokenizer.bytes_of(id))}
    longest = max(map(len, known))
    ways = {
        "own": own,
        "longest match": {word: longest_match(word.encode(), known, longest) for word in counts},
        "fewest tokens": {word: fewest(word.encode(), known, longest) for word in counts},
    }
    rows = [{"way": way, **_row(cuts, own, counts)} for way, cuts in ways.items()]
    return Table(rows, title=f"Cuts of {len(counts):,} different words by {tokenizer.name}", units={"tokens": "count"})


def summary(tokenizers: Sequence[Tokenizer], text: str | bytes | Text) -> Table:
    """Return how often longest match and the fewest tokens cut otherwise than each vocabulary: a row per vocabulary.

    Raises:
        BadValue: the text has no word.
    """
    rows = []
    for tokenizer in tokenizers:
        own, longest, few = table(tokenizer, text)
        rows.append(
            {
                "vocabulary": tokenizer.name,
                "tokens": own["tokens"],
                "by longest match": longest["tokens"],
                "words cut otherwise by longest match": longest["running words that differ"],
                "fewest": few["tokens"],
                "words cut otherwise by the fewest": few["running words that differ"],
            }
        )
    units = dict.fromkeys(("tokens", "by longest match", "fewest"), "count")
    return Table(rows, units=units, title="Three ways to cut words", note="Words with the space in front of them.")


def longest_match(word: bytes, known: set[bytes], longest: int) -> list[bytes]:
    """Cut a word by taking the longest token that fits, from the left.

    >>> longest_match(b"abcd", {b"a", b"ab", b"abc", b"bcd", b"d"}, 3)
    [b'abc', b'd']
    """
    cut, at = [], 0
    while at < len(word):
        ends = range(min(at + longest, len(word)), at, -1)
        end = next((end for end in ends if word[at:end] in known), at + 1)
        cut.append(word[at:end])
        at = end
    return cut


def fewest(word: bytes, known: set[bytes], longest: int) -> list[bytes]:
    """Cut a word into as few tokens as possible; among equals the one whose last token is the longest.

    >>> fewest(b"abcde", {b"a", b"ab", b"abc", b"bcde", b"d", b"e"}, 4)
    [b'a', b'bcde']
    """
    costs, starts = [0] + [len(word) + 1] * len(word), [0] * (len(word) + 1)
    for end in range(1, len(word) + 1):
        for start in range(max(0, end - longest), end):
            fits = word[start:end] in known or end - start == 1
            if fits and costs[start] + 1 < costs[end]:
                costs[end], starts[end] = costs[start] + 1, start
    cut: list[bytes] = []
    end = len(word)
    while end:
        cut.insert(0, word[starts[end] : end])
        end = starts[end]
    return cut


def steps(tokenizer: Tokenizer, word: str | bytes) -> Table:
    """Play the merges of one word: a row per step, from its bytes to its tokens.

    Args:
        tokenizer: a vocabulary of ranks (a `.tiktoken` file, or one trained here).
        word: one piece; it is not cut by the pattern.

    Raises:
        BadValue: another kind of vocabulary, whose merges are not told by its ids.
    """
    if not isinstance(tokenizer, Ranked):
        raise BadValue(f"'{tokenizer.name}' is no vocabulary of ranks.", "Open a .tiktoken file, or train one.")
    data = word.encode() if isinstance(word, str) else word
    pieces = [data[i : i + 1] for i in range(len(data))]
    rows: list[dict[str, object]] = [{"step": 0, "pieces": _barred(pieces), "joined": "", "rank": None}]
    while (at := _next(pieces, tokenizer.ranks)) is not None:
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        joined = pieces[at]
        row = {"step": len(rows), "pieces": _barred(pieces), "joined": printable(joined)}
        rows.append({**row, "rank": tokenizer.ranks[joined]})
    return Table(rows, title=f"Merges of {printable(data)} by {tokenizer.name}")


def _counted(tokenizer: Tokenizer, text: str | bytes | Text) -> Counter[str]:
    """Count the words of a text as the tokenizer cuts them: where it puts a space in front, every word has one."""
    counts: Counter[str] = Counter()
    for part in parts(text):
        found = _WORDS.findall(part)
        counts.update([" " + word.removeprefix(" ") for word in found] if tokenizer.prefixes else found)
    if not counts:
        raise BadValue("the text has no word.", "Give a text with letters or digits in it.")
    return counts


def _own(tokenizer: Tokenizer, word: str) -> list[bytes]:
    return [token.bytes for token in tokenizer.split(word.removeprefix(" ") if tokenizer.prefixes else word)]


def _next(pieces: Sequence[bytes], ranks: Mapping[bytes, int]) -> int | None:
    found = [(ranks[pair], i) for i in range(len(pieces) - 1) if (pair := pieces[i] + pieces[i + 1]) in ranks]
    return min(found)[1] if found else None


def _barred(pieces: Sequence[bytes]) -> str:
    return "|".join(map(printable, pieces))


def _row(
    cuts: Mapping[str, Sequence[bytes]], own: Mapping[str, Sequence[bytes]], counts: Counter[str]
) -> dict[str, object]:
    differ = [word for word in counts if list(cuts[word]) != list(own[word])]
    return {
        "tokens": sum(len(cuts[word]) * n for word, n in counts.items()),
        "running words that differ": sum(counts[word] for word in differ) / counts.total(),
        "different words that differ": len(differ) / len(counts),
    }
