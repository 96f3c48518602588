"""Training byte pair encoding the plain way: count all pairs anew for every merge. The fast way must equal it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise

from kobza.tokens.ranks import byte_ranks

Pair = tuple[int, int]


def merges(words: Mapping[bytes, int], count: int, least: int = 2) -> list[tuple[int, int, int]]:
    """Return the first merges of a corpus: (left id, right id, how often it stood in the corpus).

    The pair with the highest count is joined; among equals the one with the lower left id, then the lower right id.
    Ids are ranks: the 256 bytes in GPT-2's order, then the merges. A pair counts at every place where it stands, also
    where places overlap ("aaa" has "aa" twice).

    Args:
        words: how often each piece of the corpus occurs; merges never cross a piece.
        count: merges wanted; fewer come where no pair is left that stands `least` times.
        least: a pair that stands less often is not joined.
    """
    ranks = byte_ranks()
    split = {word: [ranks[word[i : i + 1]] for i in range(len(word))] for word in words}
    found: list[tuple[int, int, int]] = []
    for new in range(256, 256 + count):
        pairs: Counter[Pair] = Counter()
        for word, ids in split.items():
            for pair in pairwise(ids):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[best] < least:
            break
        found.append((*best, pairs[best]))
        split = {word: joined(ids, best, new) for word, ids in split.items()}
    return found


def joined(ids: list[int], pair: Pair, new: int) -> list[int]:
    """Return the ids with every occurrence of a pair replaced, from the left.

    >>> joined([1, 1, 1, 2], (1, 1), 9)
    [9, 1, 2]
    """
    out, at = [], 0
    while at < len(ids):
        is_pair = at + 1 < len(ids) and (ids[at], ids[at + 1]) == pair
        out.append(new if is_pair else ids[at])
        at += 1 + is_pair
    return out
