"""Samples that nearly repeat one another: few words changed, a line added, the spelling of a name.

Texts are sets of pieces of five words; how alike two are is the share of pieces that both have (Jaccard). Candidates
come from 64 least hash values per text in 16 bands of 4, and are then compared exactly: of two texts that share eight
tenths 0.9998 are found, of two that share half 0.64 become candidates and are refused.

Sources: Broder (1997), doi:10.1109/SEQUEN.1997.666900; bands, Leskovec et al. (2014), Mining of Massive Datasets,
chapter 3; pieces of five words and 0.8, Lee et al. (2022), arXiv:2107.06499, section 4.2.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from kobza.core.errors import OutOfRange

WORDS, ALIKE = 5, 0.8
BANDS, ROWS = 16, 4
MOST = 50_000  # samples, which take about a minute
_PRIME = (1 << 31) - 1
_CROWD = 50  # texts of one band that are compared with each other; more would be pieces that everybody has


def near_repeats(texts: Sequence[str], *, least: float = ALIKE) -> list[tuple[int, int, float]]:
    """Return (later, earlier, how alike) of every text that nearly repeats one before it: the earliest such.

    Args:
        texts: the samples.
        least: share of pieces in common [fraction, 0 < .. 1].

    Raises:
        OutOfRange: the share is not in its range.

    >>> near_repeats(["a b c d e f g", "x", "a b c d e f g"])
    [(2, 0, 1.0)]
    """
    if not 0 < least <= 1:
        raise OutOfRange(f"least {least}: a share is more than 0 and 1 at most.")
    pieces = [_pieces(text) for text in texts]
    found: dict[int, tuple[int, float]] = {}
    for first, second in sorted(_candidates(pieces)):
        if second not in found:
            common = len(pieces[first] & pieces[second])
            alike = common / (len(pieces[first]) + len(pieces[second]) - common)
            if alike >= least:
                found[second] = (first, alike)
    return [(later, earlier, alike) for later, (earlier, alike) in sorted(found.items())]


def _pieces(text: str) -> set[int]:
    words = text.casefold().split()
    ends = range(max(1, len(words) - WORDS + 1))
    return {zlib.crc32(" ".join(words[at : at + WORDS]).encode()) for at in ends}


def _candidates(pieces: Sequence[set[int]]) -> set[tuple[int, int]]:
    generator = np.random.default_rng(0)
    a, b = generator.integers(1, _PRIME, (2, BANDS * ROWS, 1), dtype=np.uint64)
    bands: dict[bytes, list[int]] = defaultdict(list)
    for n, of in enumerate(pieces):
        for band, key in enumerate(_signature(np.fromiter(of, np.uint64, len(of)), a, b)):
            bands[bytes([band]) + key.tobytes()].append(n)
    return {pair for group in bands.values() for pair in combinations(group[:_CROWD], 2)}


def _signature(pieces: NDArray[np.uint64], a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the least of each hash over the pieces, (BANDS, ROWS)."""
    least: NDArray[np.uint64] = ((a * (pieces % _PRIME) + b) % _PRIME).min(1)
    return least.reshape(BANDS, ROWS)
