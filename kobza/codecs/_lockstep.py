"""A model's next-token tables for K streams of tokens in lockstep: what `lm` and `lm_cm` stand on.

The tokens of a block are cut into K streams of nearly equal length; one step feeds one token of every stream, so the
weights are read once for K tokens, when packing and when unpacking. Both sides run the *same* steps (same batch, same
order, same windows), because the logits of a whole window and of single steps differ in their last bits, and one
flipped bit ruins all that follows. A model is known here only as a `Predictor`; torch is not.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kobza.codecs import base
from kobza.codecs._spelling import Spelled, Vocabulary, spell, unspell
from kobza.codecs.range_coder import Decoder, Encoder
from kobza.core.errors import NotFinite
from kobza.core.progress import task

TABLE_BITS = 28  # tables of 16 bits cost 48 % of the size at a vocabulary of 49152, of 20 bits 1.4 %, of 24 0.05 %
CONTEXT = 256  # tokens per stream when the number of streams is left open
MAX_STREAMS = 32  # when left open: 9.8 times the tokens per second of one; every stream holds a cache of its own
MEMORY = 768 << 20  # bytes of caches at most when left open: below the default limit of unpacking
STREAMS_LIMIT = 256
WINDOW_LIMIT = 1 << 20  # tokens

Logits = NDArray[np.float32]
Ids = NDArray[np.int64]


class Predictor(Protocol):
    """What the codecs need of a model.

    Attributes:
        fingerprint: names the weights exactly.
        environment: all that the last bits of a logit depend on; where it differs, unpacking is refused.
        context: tokens it can see, the start token among them; 0 where nothing bounds them.
    """

    @property
    def fingerprint(self) -> str: ...

    @property
    def environment(self) -> str: ...

    @property
    def context(self) -> int: ...

    def stream_bytes(self, positions: int) -> int:
        """Return the memory [bytes] that one stream of so many positions takes."""
        ...

    def restart(self, prefix: Ids) -> Logits:
        """Forget all, begin K contexts by the start token and `prefix` (K, T); return the logits (K, V) behind them."""
        ...

    def feed(self, ids: Ids) -> Logits:
        """Append one id to every stream (K,); return the logits (K, V) behind them."""
        ...


@dataclass(frozen=True)
class Schedule:
    """How contexts begin and end.

    Args:
        streams: streams in lockstep [count, 0 .. 256]; 0 leaves it to each block.
        window: tokens that the model sees at most [tokens, 1 .. 1048576].
        overlap: tokens of a full window that the next one sees again [tokens, 0 .. window - 1].
        table_bits: precision of the integer tables [bits, 16 .. 28].

    Raises:
        OutOfRange: a number outside its range.
    """

    streams: int = 0
    window: int = 1024
    overlap: int = 256
    table_bits: int = TABLE_BITS

    def __post_init__(self) -> None:
        base.check_range("streams", self.streams, 0, STREAMS_LIMIT)
        base.check_range("window", self.window, 1, WINDOW_LIMIT)
        base.check_range("overlap", self.overlap, 0, self.window - 1)
        base.check_range("table_bits", self.table_bits, 16, TABLE_BITS)

    def within(self, context: int) -> Schedule:
        """Return it with windows a model of so short a context can see."""
        window, overlap = within(context, self.window, self.overlap)
        return self if window == self.window else replace(self, window=window, overlap=overlap)

    def streams_for(self, tokens: int, predictor: Predictor) -> int:
        """Return the streams for so many tokens: as asked, else one per 256, at most 32 and 768 MiB of caches."""
        count = min(self.streams or min(MAX_STREAMS, round(tokens / CONTEXT)), tokens)
        while not self.streams and count > 1 and self.memory(tokens, count, predictor) > MEMORY:
            count -= 1
        return max(1, count)

    def memory(self, tokens: int, streams: int, predictor: Predictor) -> int:
        """Return the memory [bytes] of the model's state for `streams` streams of together `tokens` tokens."""
        return streams * predictor.stream_bytes(min(self.window, -(-tokens // streams)) + 1)


def within(context: int, window: int, overlap: int) -> tuple[int, int]:
    """Return window and overlap that a model of so short a context can see (0: unbounded); a window that is cut is seen
    again by a quarter at most.

    >>> within(128, 1024, 256), within(0, 1024, 256)
    ((128, 32), (1024, 256))
    """
    return (context, min(overlap, context // 4)) if 0 < context < window else (window, overlap)


def parts(tokens: int, streams: int) -> list[range]:
    """Return the token places of every stream; lengths differ by one at most, longer ones first.

    >>> parts(7, 3)
    [range(0, 3), range(3, 5), range(5, 7)]
    """
    short, longer = divmod(tokens, streams)
    begins = [stream * short + min(stream, longer) for stream in range(streams + 1)]
    return [range(begin, end) for begin, end in pairwise(begins)]


class Tables:
    """The integer frequencies of one step for all streams: floor(exp(l - max) * 2**bits) + 1 of the logits (K, V)."""

    def __init__(self, logits: Logits, bits: int, step: int) -> None:
        self._logits = logits
        self._top = logits.max(axis=1)  # (K,)
        if not np.isfinite(self._top).all():
            stream = int(np.flatnonzero(~np.isfinite(self._top))[0])
            raise NotFinite(f"the model's logits are not finite before token {step} of stream {stream}.")
        shares = np.exp(logits.astype(np.float64) - self._top[:, None])  # (K, V) in 0 .. 1
        self._log2_sum = np.log2(shares.sum(axis=1))
        self.counts = (shares * (1 << bits)).astype(np.int64) + 1  # (K, V)

    def ideal_bits(self, stream: int, token: int) -> float:
        """Return -log2 of the model's own probability of a token."""
        distance = float(self._top[stream]) - float(self._logits[stream, token])
        return float(distance / np.log(2) + self._log2_sum[stream])


class Coding(Protocol):
    """How the tokens of a block are coded; made anew for every block, on both sides, from (streams, raw bytes)."""

    def prepare(self, tables: Tables) -> Any:
        """Return what `put` and `get` want of a step's tables."""
        ...

    def put(self, encoder: Encoder, stream: int, token: int, step: Any) -> float:
        """Code the next token of a stream; return its price [bits]."""
        ...

    def get(self, decoder: Decoder, stream: int, step: Any) -> int:
        """Decode the next token of a stream."""
        ...


@dataclass(frozen=True)
class Packed:
    """A block as packing made it, and what it cost.

    Attributes:
        payload: all that is left to send when both sides agreed on model and settings.
        schedule: the settings.
        size: raw bytes.
        spelled: the tokens and literals.
        streams: streams in lockstep.
        literals_bytes: payload bytes that the literals take.
        ideal_bits: -log2 of the model's probability of every token (T,), in the schedule that was run.
        coded_bits: the same by the integer tables (T,).
    """

    payload: bytes = field(repr=False)
    schedule: Schedule
    size: int
    spelled: Spelled
    streams: int
    literals_bytes: int
    ideal_bits: NDArray[np.float64]
    coded_bits: NDArray[np.float64]


@dataclass(frozen=True)
class Block:
    """Turns one block into a payload and back.

    Args:
        predictor: the model.
        vocabulary: its tokenizer.
        schedule: how contexts begin and end.
        coding: (streams, raw bytes) -> how tokens are coded.
        limits: what unpacking may cost; None takes the defaults.
    """

    predictor: Predictor
    vocabulary: Vocabulary
    schedule: Schedule
    coding: Callable[[int, int], Coding]
    limits: base.Limits | None = None

    def encoder(self, costs: list[float] | None) -> base.Encode:
        """Return raw block -> payload; `costs` takes every block's ideal code length [bits]."""

        def encode(raw: bytes) -> bytes:
            packed = self.pack(raw)
            if costs is not None:
                costs.append(float(packed.ideal_bits.sum()) + 8 * packed.literals_bytes)
            return packed.payload

        return encode

    def pack(self, data: bytes) -> Packed:
        """Pack, and tell what every token cost.

        Raises:
            NotFinite: a logit is not a number; the message names the token.
        """
        spelled = spell(data, self.vocabulary)
        count = len(spelled.ids)
        streams = self.schedule.streams_for(count, self.predictor)
        encoder, coding, costs = Encoder(), self.coding(streams, len(data)), np.zeros((2, count))
        first = [part.start for part in parts(count, streams)]

        def choose(stream: int, at: int, tables: Tables, step: Any) -> int:
            place = first[stream] + at
            token = spelled.ids[place]
            costs[:, place] = tables.ideal_bits(stream, token), coding.put(encoder, stream, token, step)
            return token

        self._walk(count, streams, coding, choose, "packing")
        literals = write_literals(spelled.literals)
        payload = base.varint(streams) + base.varint(count) + literals + encoder.finish()
        return Packed(payload, self.schedule, len(data), spelled, streams, len(literals), costs[0], costs[1])

    def decode(self, payload: bytes, size: int) -> bytes:
        """Return the `size` raw bytes of a payload.

        Raises:
            ValueError, Corrupt, Truncated: the payload contradicts itself or the model.
            LimitExceeded: the model's state would take more memory than allowed.
        """
        cursor = base.Cursor(payload, "a block")
        streams, count = cursor.varint(), cursor.varint()
        if not 1 <= streams <= min(STREAMS_LIMIT, max(1, count)) or count > size:
            raise ValueError(f"{count} tokens in {streams} streams cannot stand for {size} bytes")
        literals = read_literals(cursor, count, size)
        (self.limits or base.Limits()).check_memory(self.schedule.memory(count, streams, self.predictor), "lm")
        decoder = Decoder(cursor.take(len(payload) - cursor.at))
        coding = self.coding(streams, size)

        def choose(stream: int, at: int, tables: Tables, step: Any) -> int:
            return coding.get(decoder, stream, step)

        ids = self._walk(count, streams, coding, choose, "unpacking")
        if not decoder.is_exhausted:
            raise ValueError("bytes are left behind the last token")
        return unspell(Spelled(ids.tolist(), literals), self.vocabulary)

    def _walk(
        self, tokens: int, streams: int, coding: Coding, choose: Callable[[int, int, Tables, Any], int], label: str
    ) -> Ids:
        """Run all steps; return the tokens (T,) that `choose` gave, in the order of the text."""
        schedule, lengths = self.schedule, [len(part) for part in parts(tokens, streams)]
        steps = max(lengths)
        history = np.zeros((streams, steps), np.int64)  # (K, T); streams that ended early go on with id 0
        restarts = range(schedule.window, steps, schedule.window - schedule.overlap)
        with task(label, steps) as work:
            for step in range(steps):
                if step == 0 or step in restarts:
                    logits = self.predictor.restart(history[:, max(0, step - schedule.overlap) : step])
                else:
                    logits = self.predictor.feed(history[:, step - 1])
                tables = Tables(logits, schedule.table_bits, step)
                prepared = coding.prepare(tables)
                for stream in range(streams):
                    if step < lengths[stream]:
                        history[stream, step] = choose(stream, step, tables, prepared)
                work.step()
        return np.concatenate([row[:length] for row, length in zip(history, lengths, strict=True)])


def write_literals(literals: list[tuple[int, bytes]]) -> bytes:
    """Return the bytes that no token says, and where they stand.

    Number of literals varint; per literal: tokens since the last one varint, bytes varint; then, if there are any,
    varint 2 * length + (1 when deflated), and the bytes of all.
    """
    out, last = [base.varint(len(literals))], 0
    for place, literal in literals:
        out += [base.varint(place - last), base.varint(len(literal))]
        last = place
    if literals:
        raw = b"".join(literal for _, literal in literals)
        deflated = zlib.compress(raw, 9)
        is_deflated = len(deflated) < len(raw)
        stored = deflated if is_deflated else raw
        out += [base.varint(2 * len(stored) + is_deflated), stored]
    return b"".join(out)


def read_literals(cursor: base.Cursor, tokens: int, size: int) -> list[tuple[int, bytes]]:
    """Return the literals of a block of `size` bytes and `tokens` tokens.

    Raises:
        ValueError, Truncated: they contradict the block or themselves.
    """
    count = cursor.varint()
    if count > 2 * size + 1:
        raise ValueError(f"{count} literals cannot stand in {size} bytes")
    spans, place = [], 0
    for _ in range(count):
        place, length = place + cursor.varint(), cursor.varint()
        if place > tokens or length > size:
            raise ValueError("a literal stands behind the last token, or is longer than the block")
        spans.append((place, length))
    if not count:
        return []
    stored, is_deflated = divmod(cursor.varint(), 2)
    raw = cursor.take(stored)
    total = sum(length for _, length in spans)
    if total > size:
        raise ValueError(f"the literals have {total} bytes, the block {size}")
    if is_deflated:
        try:
            raw = base.inflate(zlib.decompressobj(), raw, total)
        except zlib.error as error:
            raise ValueError(f"the literals are damaged ({error})") from None
    if len(raw) != total:
        raise ValueError(f"the literals have {len(raw)} bytes, their list says {total}")
    found, at = [], 0
    for place, length in spans:
        found.append((place, raw[at : at + length]))
        at += length
    return found
