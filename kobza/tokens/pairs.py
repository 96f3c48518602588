"""Train byte-level byte pair encoding: start from bytes, join the most frequent pair of neighbors, again and again.

Documented to the tie: among equally frequent pairs the one whose left id is lower is joined first, then the one whose
right id is; ids are ranks, the 256 bytes in GPT-2's order, then the merges. That is also what the trainer of Hugging
Face's `tokenizers` does, so its merges are equal. Counts have 64 bits and are checked not to wrap.

All places of a pair are joined in one step of array arithmetic; only the counts of pairs beside them change. Memory
grows with the different pieces of a corpus (about 140 bytes for each byte of theirs), not with its length.

Source: Gage (1994), "A New Algorithm for Data Compression"; Sennrich et al. (2016), arXiv:1508.07909, algorithm 1.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kobza.core.errors import BadValue, EmptyText, OutOfRange
from kobza.core.files import write_atomic
from kobza.core.progress import Task, progress, task
from kobza.core.table import Table
from kobza.core.texts import Text
from kobza.tokens.base import Marks, _as_bytes, printable
from kobza.tokens.patterns import PATTERNS
from kobza.tokens.ranks import Merge, Ranked, byte_ranks

Ints = NDArray[np.int64]
_NOWHERE = np.empty(0, dtype=np.int64)
_SHIFT = 32  # a pair is one number: left id << 32 | right id


class Trained(Ranked):
    """A vocabulary trained here.

    Attributes:
        counts: how often the pair of each merge stood in the corpus when it was joined.
    """

    counts: list[int]

    def history(self) -> Table:
        """Return the merges in order: id, the two parts, and how often they stood side by side."""
        rows = [
            {"id": 256 + n, "left": printable(left), "right": printable(right), "count": count}
            for n, ((left, right), count) in enumerate(zip(self.merges, self.counts, strict=True))
        ]
        return Table(rows, title=f"Merges of {self.name}", order=["id", "left", "right", "count"])

    def save_json(self, path: str | Path) -> Path:
        """Write a `tokenizer.json`, pattern and control tokens included, that `tokenizers` opens with equal ids."""
        return write_atomic(path, self._backend.to_str(pretty=False))


def train(
    text: str | bytes | Text | Iterable[str | bytes | Text],
    *,
    size: int = 8192,
    pattern: str = "gpt2",
    special: Sequence[str] | None = ("<|endoftext|>",),
    least: int = 2,
    name: str = "trained",
) -> Trained:
    """Train a vocabulary. Nothing in it is random: two runs give one file.

    Args:
        text: the corpus, whole or in parts; merges do not cross parts. What is not UTF-8 reads as U+FFFD.
        size: ids in all: 256 bytes, merges, control tokens [count, 256 + control tokens ..].
        pattern: what cuts the text before merging: "gpt2", "cl100k", "o200k", "none" or a regular expression.
        special: control tokens, which get the last ids; the first is the end mark. None: there are none.
        least: a pair that stands less often is not joined [count, 1 ..].
        name: what to call it.

    Raises:
        EmptyText: the corpus is empty.
        OutOfRange: `size` is too small, or larger than the corpus allows; the message says how far it goes.
        BadValue: the pattern is not a regular expression, or does not keep all of the text.
    """
    words = pieces(text, pattern)
    return from_words(words, size=size, pattern=pattern, special=special or (), least=least, name=name)


def from_words(
    words: Mapping[bytes, int],
    *,
    size: int,
    pattern: str,
    special: Iterable[str] = ("<|endoftext|>",),
    least: int = 2,
    name: str = "trained",
) -> Trained:
    """Train on pieces that are already cut and counted; the options are those of `train`."""
    return in_stages([words], [1.0], size=size, pattern=pattern, special=special, least=least, name=name)


def in_stages(
    corpora: Sequence[Mapping[bytes, int]],
    until: Sequence[float],
    *,
    size: int,
    pattern: str,
    special: Iterable[str] = ("<|endoftext|>",),
    least: int = 2,
    name: str = "trained",
) -> Trained:
    """Train on one corpus after the other, or on one that is cut differently in each stage.

    Args:
        corpora: counted pieces of each stage.
        until: share of all merges that are made when a stage ends; the last is 1 [fraction, 0 .. 1].
        size, pattern, special, least, name: as `train`.
    """
    names = list(special)
    wanted = size - 256 - len(names)
    if wanted < 0:
        raise OutOfRange(f"size is {size}; 256 bytes and {len(names)} control tokens need {256 + len(names)}.")
    if least < 1:
        raise OutOfRange(f"least is {least}; it must be at least 1.")
    found: list[tuple[int, int, int]] = []
    for words, share in zip(corpora, until, strict=True):
        found = merges(words, round(wanted * share), least, found)
    if len(found) < wanted:
        raise OutOfRange(
            f"size is {size}, but the corpus allows {256 + len(names) + len(found)}: no other pair of tokens stands "
            f"{least} times in it.",
            "Ask for less, give more text, or lower `least`.",
        )
    return _vocabulary(found, pattern, names, name)


def pieces(text: str | bytes | Text | Iterable[str | bytes | Text], pattern: str) -> Counter[bytes]:
    """Cut a corpus by a pattern and count the different pieces.

    Raises:
        EmptyText, BadValue: as `train`.
    """
    regex: Any = importlib.import_module("regex")
    try:
        compiled = regex.compile(PATTERNS.get(pattern, pattern))
    except regex.error as error:
        raise BadValue(f"the split pattern {pattern!r} is not a regular expression: {error}.") from None
    counts: Counter[str] = Counter()
    length = 0
    for part in progress(parts(text), "cut the text"):
        length += len(part)
        counts.update(map(itemgetter(0), compiled.finditer(part)))
    if not length:
        raise EmptyText("the corpus is empty.", "Give a text of at least one byte.")
    kept = sum(len(piece) * n for piece, n in counts.items())
    if kept != length:
        raise BadValue(f"the split pattern {pattern!r} leaves out {length - kept} of {length} characters.")
    return Counter({piece.encode(): n for piece, n in counts.items()})


def parts(text: str | bytes | Text | Iterable[str | bytes | Text]) -> Iterable[str]:
    """Yield the parts of a corpus as strings."""
    for part in (text,) if isinstance(text, str | bytes | Text) else text:
        data = part.data if isinstance(part, Text) else _as_bytes(part)
        yield data.decode("utf-8", errors="replace")


def merges(
    words: Mapping[bytes, int], count: int, least: int = 2, given: Sequence[tuple[int, int, int]] = ()
) -> list[tuple[int, int, int]]:
    """Return the first merges of a corpus: (left id, right id, how often it stood there); see `plain_pairs.merges`.

    Args:
        words, count, least: as there.
        given: merges made before on another corpus; they are joined first and begin the list.
    """
    corpus = _Corpus.of(words)
    found = list(given)
    for n, (left, right, _) in enumerate(given):
        corpus.join(left << _SHIFT | right, 256 + n)
    with task("train", count) as work:
        for new in range(256 + len(given), 256 + count):
            best = corpus.best(least)
            if best is None:
                break
            key, times = best
            corpus.join(key, new)
            found.append((key >> _SHIFT, key & 0xFFFFFFFF, times))
            _tell(work, new)
    return found


def _tell(work: Task, new: int) -> None:
    if new % 64 == 0:
        work.step(64)


@dataclass
class _Corpus:
    """The different pieces of a corpus one behind the other, as a list linked both ways over arrays.

    Attributes:
        ids: token at each place (N,); -1 behind the last one of a piece and where a token was joined to the left.
        after, before: the next and the previous place (N,).
        weights: how often the piece of a place occurs in the corpus (N,).
        counts: how often each pair stands in the corpus.
        places: where it stands or stood, in arrays; places that changed since are sorted out when it is joined.
    """

    ids: Ints
    after: Ints
    before: Ints
    weights: Ints
    counts: dict[int, int] = field(default_factory=dict)
    places: dict[int, list[Ints]] = field(default_factory=dict)
    heap: list[tuple[int, int]] = field(default_factory=list)

    @classmethod
    def of(cls, words: Mapping[bytes, int]) -> _Corpus:
        if sum(words.values()) * max(map(len, words), default=0) >= 1 << 62:
            raise OutOfRange("the corpus has more pieces than 64-bit counts hold.")
        ordered = sorted(words)  # so that the order in which pieces were met cannot matter
        lengths = np.array([len(word) + 1 for word in ordered], dtype=np.int64)
        table = np.zeros(256, dtype=np.int64)
        for byte, rank in byte_ranks().items():
            table[byte[0]] = rank
        # a place behind each piece stays empty, so that no pair crosses from one to the next
        ids = table[np.frombuffer(b"".join(word + b"\0" for word in ordered), dtype=np.uint8)]
        ids[np.cumsum(lengths) - 1] = -1
        weights = np.repeat(np.array([words[word] for word in ordered], dtype=np.int64), lengths)
        # two more empty places: before the first there is the last
        ids, weights = np.concatenate([ids, [-1, -1]]), np.concatenate([weights, [0, 0]])
        numbers = np.arange(len(ids), dtype=np.int64)
        after, before = np.minimum(numbers + 1, len(ids) - 1), np.roll(numbers, 1)
        corpus = cls(ids, after, before, weights)
        corpus._add(numbers, 1)
        corpus.heap = [(-count, key) for key, count in corpus.counts.items()]
        heapify(corpus.heap)
        return corpus

    def best(self, least: int) -> tuple[int, int] | None:
        """Return the pair to join next and its count, or None."""
        while self.heap:
            negative, key = heappop(self.heap)
            count = self.counts.get(key, 0)
            if count == -negative:
                return (key, count) if count >= least else None
            if count:
                heappush(self.heap, (-count, key))  # it fell since; what rose was pushed then
        return None

    def join(self, key: int, new: int) -> None:
        """Replace a pair wherever it stands and bring the counts beside it up to date."""
        left = self._standing(key)
        if not len(left):
            return
        right = self.after[left]
        self._add(_unique(np.concatenate([self.before[left], left, right])), -1)
        last = self.after[right]
        self.ids[left], self.ids[right] = new, -1
        self.after[left], self.before[last] = last, left
        risen = self._add(_unique(np.concatenate([self.before[left], left])), 1)
        self.counts.pop(key, None)
        self.places.pop(key, None)
        for other in risen:
            heappush(self.heap, (-self.counts[other], other))

    def _standing(self, key: int) -> Ints:
        """Return the places where a pair stands, left ends, none of them overlapping, in order."""
        lists = self.places.get(key, [_NOWHERE])
        listed = lists[0] if len(lists) == 1 else _unique(np.concatenate(lists))
        left, right = key >> _SHIFT, key & 0xFFFFFFFF
        found = listed[(self.ids[listed] == left) & (self.ids[self.after[listed]] == right)]
        return self._every_other(found) if left == right else found

    def _every_other(self, found: Ints) -> Ints:
        """Return of runs such as aaaa only each second place, from the left."""
        starts = np.ones(len(found), dtype=bool)
        starts[1:] = found[1:] != self.after[found[:-1]]
        numbers = np.arange(len(found))
        since = numbers - np.maximum.accumulate(np.where(starts, numbers, 0))
        return found[since % 2 == 0]

    def _add(self, places: Ints, sign: int) -> list[int]:
        """Count the pairs that begin at some places in (1) or out (-1), and return them."""
        left, right = self.ids[places], self.ids[self.after[places]]
        real = (left >= 0) & (right >= 0)
        places = places[real]
        keys = (left[real] << _SHIFT) | right[real]
        order = np.argsort(keys, kind="stable")
        keys, places = keys[order], places[order]
        if not len(keys):
            return []
        firsts = np.concatenate([[0], np.flatnonzero(keys[1:] != keys[:-1]) + 1])
        sums = np.add.reduceat(self.weights[places], firsts)
        names: list[int] = keys[firsts].tolist()
        counts = self.counts
        for name, total in zip(names, sums.tolist(), strict=True):
            counts[name] = counts.get(name, 0) + sign * total
        if sign > 0:
            bounds = [*firsts.tolist(), len(keys)]
            for name, begin, end in zip(names, bounds, bounds[1:], strict=False):
                self.places.setdefault(name, []).append(places[begin:end])
        return names


def _unique(places: Ints) -> Ints:
    """Return the places sorted and each once; the array given is sorted too. `np.unique` takes thrice as long."""
    places.sort()
    keep = np.empty(len(places), dtype=bool)
    keep[:1] = True
    np.not_equal(places[1:], places[:-1], out=keep[1:])
    return places[keep]


def _vocabulary(found: Iterable[tuple[int, int, int]], pattern: str, names: list[str], name: str) -> Trained:
    tokens = sorted(byte_ranks(), key=byte_ranks().__getitem__)
    pairs: list[Merge] = []
    counts = []
    for left, right, count in found:
        pairs.append((tokens[left], tokens[right]))
        tokens.append(tokens[left] + tokens[right])
        counts.append(count)
    special = {mark: len(tokens) + n for n, mark in enumerate(names)}
    marks = Marks(end_id=special.get(names[0]) if names else None)
    ranks = {token: rank for rank, token in enumerate(tokens)}
    vocabulary = Trained(ranks, pattern, special, marks, merges=pairs, name=name)
    vocabulary.counts = counts
    return vocabulary
