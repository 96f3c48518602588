"""A language model and context mixing together: the model knows the language, the mixing learns the text.

Source: Mahoney (2005), Florida Tech report CS-2005-16, for mixing in the logistic domain; the way from tokens to bits
is kobza's own.

A token is coded as the bits of its bytes, from the root of the tree of all tokens: where a token may end and others go
on, one decision says whether it ends; each further bit splits the tokens that begin so. The model's probability of a
decision is the share of its tokens on either side, so that by the chain rule it pays what `lm` pays; `cm`'s is that of
its next bit, and a small network of weights that learn mixes both. A decision with one outcome costs nothing. The
streams of a block share what `cm` learns.

Parameters and payload are those of `lm`; the environment also names the C library, whose logarithms are used.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kobza.codecs import _settings, base, native
from kobza.codecs._lockstep import Block, Ids, Predictor, Schedule, Tables
from kobza.codecs._settings import VERSION, decompress, described
from kobza.codecs.range_coder import Decoder, Encoder

__all__ = [
    "BLOCK_LOG2", "VERSION", "Blend", "Mixed", "Tree", "Vocabulary", "coder", "compress", "decoder", "decompress",
    "described", "memory",
]  # fmt: skip

BLOCK_LOG2 = 20
MIXING = 140 << 20  # bytes at most of `cm`'s tables
ONE = 1 << 32  # a probability of 1 for the range coder
LEAST = 1 << 10  # what a decision's outcomes keep of it at least
RATE = 0.01  # of learning; 0.005 to 0.02 and widths of 1 to 3 cost within 0.3 % of this (LOG.md)
FIRST = (0.7, 0.3)  # weights of model and mixing at first
COARSE = 2.5  # width of the classes of confidence [nats]

Decide = Callable[[int, int | None], int]  # (probability of a 1 of ONE, the bit or None) -> the bit


class Vocabulary(Protocol):
    """What this codec needs of a tokenizer: `tokens.Tokenizer` is one."""

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def encode(self, text: str, /) -> list[int]: ...

    def decode(self, ids: Sequence[int], /) -> bytes: ...

    def bytes_of(self, id: int, /) -> bytes: ...


def compress(
    data: bytes,
    *,
    predictor: Predictor,
    vocabulary: Vocabulary,
    streams: int = 0,
    window: int = 1024,
    overlap: int = 256,
    block_log2: int = BLOCK_LOG2,
    record: str = "auto",
) -> bytes:
    """Return `data` as a .kbz file, packed by model and mixing and unpacked again to be sure.

    Args:
        data: what to pack; any bytes, empty too.
        predictor: the model.
        vocabulary: its tokenizer.
        streams: streams coded in lockstep [count, 0 .. 256]; 0 takes one per 256 tokens, at most 32 and 768 MiB of
            caches.
        window: tokens that the model sees at most [tokens, 1 .. 1048576]; never more than it was trained for.
        overlap: tokens of a full window that the next one sees again [tokens, 0 .. window - 1].
        block_log2: blocks of 2^block_log2 bytes, in each of which mixing learns anew [log2 of bytes, 10 .. 20].
        record: how the file names model, tokenizer and arithmetic [auto, brief or full]; see `lm.compress`.

    Returns:
        The file; it names model, tokenizer and arithmetic.

    Raises:
        OutOfRange: an option outside its range.
        NotFinite: the model's logits are NaN or infinite; the message names the token.
        NotReproducible: a block did not come back.
    """
    base.check_range("block_log2", block_log2, 10, BLOCK_LOG2)
    given: dict[str, Any] = {"predictor": predictor, "vocabulary": vocabulary, "record": record}
    made = coder(data, streams=streams, window=window, overlap=overlap, **given)
    return base.pack(data, made, block_log2=base.fitting_block(len(data), block_log2))


def coder(
    data: bytes = b"",
    *,
    predictor: Predictor,
    vocabulary: Vocabulary,
    streams: int = 0,
    window: int = 1024,
    overlap: int = 256,
    record: str = "auto",
    costs: list[float] | None = None,
) -> base.Coder:
    """Return the coder for a `base.Writer`; only the length of `data` matters, options as in `compress`.

    Args:
        costs: takes what every block would ideally cost by the model alone [bits].
    """
    schedule = Schedule(streams, window, overlap).within(predictor.context)
    block = Block(predictor, vocabulary, schedule, partial(Mixed, Tree(vocabulary)))
    return _settings.coder("lm_cm", block, len(data), record, costs, _arithmetic())


def decoder(parameters: Mapping[str, bytes], supply: Mapping[str, Any]) -> base.Decode:
    """Return the block decoder; `supply` holds "predictor" and "vocabulary", and "is_forced" to try it anyway.

    Raises:
        ModelMissing, ModelMismatch, NotReproducible, UnknownCodec: see `_settings.read_settings`.
    """
    return _settings.decoder(parameters, supply, lambda vocabulary: partial(Mixed, Tree(vocabulary)), _arithmetic())


def memory(size: int, parameters: Mapping[str, bytes]) -> int:
    """Return the working memory [bytes] to decode a block of `size` bytes; the model's own is judged with the model."""
    return 56 * size + (48 << 20) + min(MIXING, 1024 * size + (8 << 20)) + 256 * _room(size)


def _arithmetic() -> str:
    return "; " + " ".join(("Python", platform.python_version(), *platform.libc_ver())).strip()


def _room(size: int) -> int:
    """Return the bytes kept of each stream: all of them, and what a tokenizer adds in front of runs."""
    return size + size // 4 + 256


class Tree:
    """All tokens in the order of their bytes: those that begin alike stand together.

    Attributes:
        order: ids in that order (V,).
        place: place of every id (V,).
        names: their bytes, in that order.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        names = [vocabulary.bytes_of(i) for i in range(len(vocabulary))]
        self.order: Ids = np.array(sorted(range(len(names)), key=names.__getitem__), np.int64)
        self.place: Ids = np.argsort(self.order)
        self.names = [names[i] for i in self.order]
        self._splits: dict[tuple[int, int, int], int] = {}

    def ending(self, low: int, high: int, depth: int) -> int:
        """Return the place behind those of [low, high) that end at `depth` bytes."""
        at = low
        while at < high and len(self.names[at]) == depth:
            at += 1
        return at

    def split(self, low: int, high: int, depth: int, bit: int) -> int:
        """Return the first place of [low, high) whose byte at `depth` has the bit set; they agree in all before it."""
        key = (low, high, 8 * depth + bit)
        if key not in self._splits:
            begin, end = low, high
            while begin < end:
                middle = (begin + end) // 2
                if self.names[middle][depth] >> bit & 1:
                    end = middle
                else:
                    begin = middle + 1
            self._splits[key] = begin
        return self._splits[key]


class Mixed:
    """Tokens as decisions, each mixed of the model's probability and the mixing's.

    Args:
        tree: the tokens.
        streams: of the block.
        size: its raw bytes.
    """

    def __init__(self, tree: Tree, streams: int, size: int) -> None:
        self.tree = tree
        self.room = _room(size)
        self.texts = native.mixing_open(self.room, streams)
        self.filled = [0] * streams
        self.blend = Blend()

    def prepare(self, tables: Tables) -> Ids:
        """Return the running sums (K, V + 1) over the tokens in the tree's order."""
        counts = tables.counts[:, self.tree.order]
        cumulative = np.zeros((len(counts), counts.shape[1] + 1), np.int64)
        np.cumsum(counts, axis=1, out=cumulative[:, 1:])
        return cumulative

    def put(self, encoder: Encoder, stream: int, token: int, cumulative: Ids) -> float:
        """Code a token; return its price [bits]."""
        price = 0.0

        def decide(ones: int, bit: int | None) -> int:
            nonlocal price
            assert bit is not None
            share = ones if bit else ONE - ones
            encoder.encode(ONE - ones if bit else 0, share, ONE)
            price -= math.log2(share / ONE)
            return bit

        wanted = int(self.tree.place[token])
        low, high = self._descend(stream, cumulative[stream], decide, wanted)
        if high - low > 1:
            start, size, total = _part(cumulative[stream], low, wanted, high)
            encoder.encode(start, size, total)
            price += math.log2(total / size)
        return price

    def get(self, decoder: Decoder, stream: int, cumulative: Ids) -> int:
        """Return the next token."""

        def decide(ones: int, bit: int | None) -> int:
            found = int(decoder.target(ONE) >= ONE - ones)
            decoder.advance(*((ONE - ones, ones, ONE) if found else (0, ONE - ones, ONE)))
            return found

        row = cumulative[stream]
        low, high = self._descend(stream, row, decide, None)
        if high - low > 1:
            first = int(row[low])
            target = decoder.target(int(row[high]) - first) + first
            found = low + int(np.searchsorted(row[low : high + 1], target, side="right")) - 1
            decoder.advance(*_part(row, low, found, high))
            low = found
        return int(self.tree.order[low])

    def _descend(self, stream: int, row: NDArray[np.int64], decide: Decide, wanted: int | None) -> tuple[int, int]:
        """Walk from the root to a token; return the places [low, high) of the tokens of exactly these bytes."""
        low, high, depth = 0, len(self.tree.names), 0
        native.mixing_turn(self.texts, stream)
        while True:
            longer = self.tree.ending(low, high, depth)
            if longer > low and (longer == high or self._ends(row, low, longer, high, decide, wanted)):
                self.filled[stream] += depth
                return low, longer
            low, high = self._byte(stream, row, longer, high, depth, decide, wanted)
            depth += 1

    def _ends(
        self, row: NDArray[np.int64], low: int, longer: int, high: int, decide: Decide, wanted: int | None
    ) -> bool:
        first, middle, last = int(row[low]), int(row[longer]), int(row[high])
        ones = self.blend.of_end(math.log((middle - first) / (last - middle)))
        bit = decide(ones, None if wanted is None else int(wanted < longer))
        self.blend.learn(bit)
        return bool(bit)

    def _byte(
        self, stream: int, row: NDArray[np.int64], low: int, high: int, depth: int, decide: Decide, wanted: int | None
    ) -> tuple[int, int]:
        is_followed = self.filled[stream] + depth < self.room
        for k in range(7, -1, -1):
            middle = self.tree.split(low, high, depth, k)
            ones = native.mixing_predict(self.texts) if is_followed else 1 << 15
            if middle in (low, high):
                bit = int(middle == low)
            else:
                zero, one = int(row[middle]) - int(row[low]), int(row[high]) - int(row[middle])
                mixed = self.blend.of_bit(math.log(one / zero), math.log(ones / (65536 - ones)), depth, k)
                bit = decide(mixed, None if wanted is None else int(wanted >= middle))
                self.blend.learn(bit)
            if is_followed:
                native.mixing_update(self.texts, bit)
            low, high = (middle, high) if bit else (low, middle)
        return low, high


class Blend:
    """Weights that learn: log odds of model and mixing -> probability of a 1."""

    def __init__(self) -> None:
        self._ends = [[1.0, 0.0] for _ in range(16)]
        self._bits = [list(FIRST) for _ in range(16)]
        self._sure = [list(FIRST) for _ in range(12 * 12)]
        self._chosen: list[tuple[list[float], tuple[float, float], float]] = []

    def of_end(self, model: float) -> int:
        """Return the probability [1/ONE] that a token ends, of the model's log odds."""
        return self._mixed([self._ends[min(15, int(abs(model) / COARSE))]], (model, 1.0))

    def of_bit(self, model: float, mixing: float, depth: int, bit: int) -> int:
        """Return the probability [1/ONE] of a 1, of both log odds, at a bit [7 .. 0] of a token's byte."""
        sure = 12 * min(11, int(abs(model) / COARSE)) + min(11, int(abs(mixing) / COARSE))
        return self._mixed([self._bits[8 * (depth > 0) + bit], self._sure[sure]], (model, mixing))

    def learn(self, bit: int) -> None:
        """Move the weights used last towards the outcome, each set by its own error."""
        for weights, inputs, odds in self._chosen:
            step = RATE * (bit - _probability(odds))
            for i, value in enumerate(inputs):
                weights[i] += step * value

    def _mixed(self, sets: list[list[float]], inputs: tuple[float, float]) -> int:
        self._chosen = [(w, inputs, w[0] * inputs[0] + w[1] * inputs[1]) for w in sets]
        odds = sum(odds for _, _, odds in self._chosen) / len(sets)
        return min(max(int(_probability(odds) * ONE), LEAST), ONE - LEAST)


def _probability(odds: float) -> float:
    return 1 / (1 + math.exp(-min(max(odds, -30.0), 30.0)))


def _part(row: NDArray[np.int64], low: int, at: int, high: int) -> tuple[int, int, int]:
    """Return (start, size, total) of the place `at` within [low, high)."""
    first = int(row[low])
    return int(row[at]) - first, int(row[at + 1] - row[at]), int(row[high]) - first
