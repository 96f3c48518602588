"""Supertokens: tokens that span words, trained by cutting the corpus elsewhere than between words.

Plain byte pair encoding never joins across a space, since its pieces are words. Here the corpus is cut into chunks of
random length, of so many characters or of so many words, or a vocabulary of words is trained first and merges across
spaces are added to it. At run time such a vocabulary cuts nothing: a whole text is one piece.

Source: chunks of characters: the tool SuperTokenizer (Tinycompany-AI, train.yaml); chunks of words: a variant of it;
two stages: SuperBPE, Liu et al. (2025), arXiv:2503.13423, section 2.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal

from kobza.core.errors import BadValue, OutOfRange
from kobza.core.table import Table
from kobza.core.texts import Text
from kobza.tokens.base import Tokenizer
from kobza.tokens.pairs import Trained, from_words, in_stages, parts, pieces

# characters of a chunk -> share, as published; it sums to 1.1, so it is renormalised. Uniform within a pair.
PUBLISHED: dict[tuple[int, int], float] = {
    (4, 5): 0.044, (6, 7): 0.091, (8, 9): 0.146, (10, 11): 0.171, (12, 13): 0.185, (14, 15): 0.171, (16, 17): 0.146,
    (18, 19): 0.091, (20, 21): 0.044, (22, 23): 0.011,
}  # fmt: skip
# words of a chunk: the best of four ranges on documentation and Python source, near the best on Shakespeare and Kobzar,
# confirmed on Wikipedia, on which none was chosen (docs/tokens.md)
WORDS: dict[tuple[int, int], float] = {(1, 4): 1.0}
Corpus = str | bytes | Text | Iterable[str | bytes | Text]
Lengths = Mapping[tuple[int, int], float]
By = Literal["words", "characters", "stages"]


def train(
    text: Corpus,
    *,
    size: int = 8192,
    by: Literal["words", "characters", "stages"] = "words",
    lengths: Lengths | None = None,
    first: float = 0.5,
    special: Sequence[str] | None = ("<|endoftext|>",),
    least: int = 2,
    seed: int = 0,
    name: str = "supertokens",
) -> Trained:
    """Train a vocabulary whose tokens may span words.

    Args:
        text: the corpus, whole or in parts.
        size: ids in all [count, 256 + control tokens ..].
        by: "words" cuts chunks of so many words, "characters" of so many characters, "stages" trains words first.
        lengths: {(shortest, longest): share}, the lengths of chunks; uniform within a pair; shares are renormalised.
            By default `WORDS` or `PUBLISHED`.
        first: share of the merges that the first of two stages makes [fraction, 0 .. 1].
        special: control tokens, which get the last ids. None: there are none.
        least: a pair that stands less often is not joined [count, 1 ..].
        seed: where the chunks' lengths come from [0 ..].
        name: what to call it.

    Raises:
        EmptyText, OutOfRange: as `pairs.train`.
        BadValue: `by` or `lengths` is none of the above.
    """
    if by == "stages":
        return _in_stages(text, size, first, list(special or ()), least, name)
    if by not in ("words", "characters"):
        raise BadValue(f"chunks are cut by 'words' or 'characters', or in 'stages', not by {by!r}.")
    words = chunks(text, by=by, lengths=lengths, seed=seed)
    return from_words(words, size=size, pattern="none", special=special or (), least=least, name=name)


def chunks(text: Corpus, *, by: str = "words", lengths: Lengths | None = None, seed: int = 0) -> Counter[bytes]:
    """Cut a corpus into chunks of random length and count the different ones; every character is kept."""
    spread = lengths or (WORDS if by == "words" else PUBLISHED)
    draw = _Draw(spread, seed)
    counts: Counter[str] = Counter()
    for part in parts(text):
        units: Sequence[str] = _words(part) if by == "words" else part
        at = 0
        while at < len(units):
            n = draw.length()
            counts["".join(units[at : at + n])] += 1
            at += n
    if not counts:
        return pieces("", "none")  # which says that the corpus is empty
    return Counter({chunk.encode(): n for chunk, n in counts.items()})


def notice(lengths: Lengths) -> str:
    """Return a remark if shares of lengths had to be renormalised; the published ones sum to 1.1.

    >>> notice(PUBLISHED)
    'The shares of chunk lengths sum to 1.1 and were divided by it.'
    """
    total = sum(lengths.values())
    return "" if abs(total - 1) < 1e-9 else f"The shares of chunk lengths sum to {total:.3g} and were divided by it."


def gains(text: Corpus, held_out: str | bytes | Text, *, size: int = 8192, seed: int = 0) -> Table:
    """Train plain BPE and every kind of supertokens on one text and compress another with them.

    Returns:
        A row per vocabulary: tokens of the held-out text, bytes a token, fewer tokens than plain BPE [fraction], and
        the share of running tokens that span words.
    """
    from kobza.tokens import pairs

    corpus = list(parts(text))
    vocabularies: list[Tokenizer] = [pairs.train(corpus, size=size, name="words (plain BPE)")]
    kinds: dict[By, str] = {"characters": "chunks of characters", "words": "chunks of words", "stages": "two stages"}
    vocabularies += [train(corpus, size=size, by=by, seed=seed, name=name) for by, name in kinds.items()]
    data = "".join(parts(held_out)).encode()
    rows = [_gain(vocabulary, data) for vocabulary in vocabularies]
    rows = [{**row, "fewer tokens": 1 - row["tokens"] / rows[0]["tokens"]} for row in rows]
    note = f"Trained on {sum(len(p.encode()) for p in corpus):,} other bytes. {notice(PUBLISHED)}"
    return Table(rows, units={"bytes a token": "B"}, title=f"Held-out gains at {size} ids", note=note)


def _gain(vocabulary: Tokenizer, data: bytes) -> dict[str, Any]:
    ids = vocabulary.encode(data)
    spanning = sum(b" " in vocabulary.bytes_of(id).strip(b" ") for id in ids)
    return {
        "vocabulary": vocabulary.name,
        "tokens": len(ids),
        "bytes a token": len(data) / len(ids),
        "span words": spanning / len(ids),
        "exact": vocabulary.decode(ids) == data,
    }


class _Draw:
    """Lengths drawn from shares of ranges."""

    def __init__(self, lengths: Lengths, seed: int) -> None:
        self._ranges = list(lengths)
        shares = list(lengths.values())
        if not shares or min(shares) < 0 or sum(shares) <= 0 or any(not 1 <= a <= b for a, b in self._ranges):
            raise BadValue(
                f"lengths are {{(shortest, longest): share}} with 1 <= shortest <= longest, not {lengths!r}."
            )
        self._random = random.Random(seed)
        self._ends = list(accumulate(shares))

    def length(self) -> int:
        low, high = self._random.choices(self._ranges, cum_weights=self._ends)[0]
        return self._random.randint(low, high)


def _words(text: str) -> list[str]:
    """Cut a text into words, each with the spaces and line ends in front of it."""
    return re.findall(r"\s*\S+|\s+", text)


def _in_stages(text: Corpus, size: int, first: float, special: list[str], least: int, name: str) -> Trained:
    if not 0 <= first <= 1:
        raise OutOfRange(f"first is {first}; it must be between 0 and 1.")
    corpus = list(parts(text))
    lines = Counter(line.encode() for part in corpus for line in part.splitlines(keepends=True))
    return in_stages(
        [pieces(corpus, "gpt2"), lines],
        [first, 1.0],
        size=size,
        pattern="none",
        special=special,
        least=least,
        name=name,
    )
