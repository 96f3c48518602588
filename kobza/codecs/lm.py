"""A language model as a codec: arithmetic coding with its next-token probabilities.

Source: Shannon (1948) for the code length; Deletang et al. (2024), "Language Modeling Is Compression",
arXiv:2309.10668, for the use with language models.

Parameters in the header: see `_lockstep.write_settings`. A block's payload: streams varint, tokens varint, the literals
(bytes that do not survive the tokenizer, such as invalid UTF-8, each before the token of its position; see
`_lockstep.write_literals`), then the range coder's bytes to the end. Every block is unpacked and compared before it is
written. Unpacking needs the same model and the same arithmetic: the header names both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kobza.codecs import base
from kobza.codecs._lockstep import (
    STREAMS_LIMIT,
    Ids,
    Logits,
    Predictor,
    Schedule,
    Tables,
    parts,
    read_literals,
    read_settings,
    walk,
    write_literals,
    write_settings,
)
from kobza.codecs._spelling import Spelled, Vocabulary, spell, unspell
from kobza.codecs.range_coder import Decoder, Encoder

__all__ = [
    "BLOCK_LOG2", "Ids", "Logits", "Packed", "Predictor", "Schedule", "Vocabulary", "coder", "compress", "decoder",
    "decompress", "memory", "pack", "restore",
]  # fmt: skip

BLOCK_LOG2 = 20


def compress(
    data: bytes,
    *,
    predictor: Predictor,
    vocabulary: Vocabulary,
    streams: int = 0,
    window: int = 1024,
    overlap: int = 256,
    block_log2: int = BLOCK_LOG2,
) -> bytes:
    """Return `data` as a .kbz file, packed with a model and unpacked again to be sure.

    Args:
        data: what to pack; any bytes, empty too.
        predictor: the model.
        vocabulary: its tokenizer.
        streams: streams coded in lockstep [count, 0 .. 256]; 0 takes one per 256 tokens, at most 32 and 768 MiB of
            caches. More streams are faster and larger, because each begins without context.
        window: tokens that the model sees at most [tokens, 1 .. 1048576].
        overlap: tokens of a full window that the next one sees again [tokens, 0 .. window - 1].
        block_log2: blocks of 2^block_log2 bytes, each beginning without context [log2 of bytes, 10 .. 24].

    Returns:
        The file; it names model, tokenizer and arithmetic.

    Raises:
        OutOfRange: an option outside its range.
        NotFinite: the model's logits are NaN or infinite; the message names the token.
        NotReproducible: a block did not come back.
    """
    base.check_range("block_log2", block_log2, 10, 24)
    made = coder(predictor=predictor, vocabulary=vocabulary, streams=streams, window=window, overlap=overlap)
    return base.pack(data, made, block_log2=base.fitting_block(len(data), block_log2))


def decompress(
    blob: bytes,
    *,
    predictor: Predictor,
    vocabulary: Vocabulary,
    limits: base.Limits | None = None,
    is_forced: bool = False,
) -> bytes:
    """Return the bytes of a .kbz file packed with this model.

    Args:
        blob: the file.
        predictor: the model it was packed with.
        vocabulary: the tokenizer it was packed with.
        limits: what unpacking may cost; None takes the defaults.
        is_forced: try although the environment differs; the checksums still decide.

    Raises:
        ModelMismatch, NotReproducible: another model, tokenizer or environment packed it.
        Corrupt, Truncated, LimitExceeded: see `base.unpack`.
    """
    supply = {"predictor": predictor, "vocabulary": vocabulary, "is_forced": is_forced}
    return base.unpack(blob, limits=limits, supply=supply)


def coder(
    data: bytes = b"",
    *,
    predictor: Predictor,
    vocabulary: Vocabulary,
    streams: int = 0,
    window: int = 1024,
    overlap: int = 256,
    costs: list[float] | None = None,
) -> base.Coder:
    """Return the coder for a `base.Writer`; `data` is not looked at, options as in `compress`.

    Args:
        costs: takes the ideal code length of every block [bits], its literals at their packed size.
    """
    schedule = Schedule(streams, window, overlap)
    parameters = write_settings(predictor, vocabulary, schedule)

    def encode(raw: bytes) -> bytes:
        packed = _pack(raw, predictor, vocabulary, schedule)
        if costs is not None:
            costs.append(float(packed.ideal_bits.sum()) + 8 * packed.literals_bytes)
        return packed.payload

    decode = decoder(parameters, {"predictor": predictor, "vocabulary": vocabulary})
    return base.Coder("lm", encode, parameters, decode=decode, is_proved=True)


def decoder(parameters: Mapping[str, bytes], supply: Mapping[str, Any]) -> base.Decode:
    """Return the block decoder; `supply` holds "predictor" and "vocabulary", and "is_forced" to try it anyway.

    Raises:
        ModelMissing, ModelMismatch, NotReproducible, UnknownCodec: see `_lockstep.read_settings`.
    """
    predictor, vocabulary, schedule = read_settings(parameters, supply)
    limits: base.Limits = supply.get("limits") or base.Limits()
    return lambda payload, size: _unpack(payload, size, predictor, vocabulary, schedule, limits)


def memory(size: int, parameters: Mapping[str, bytes]) -> int:
    """Return the working memory [bytes] to decode a block of `size` bytes; the model's own is judged with the model."""
    return 56 * size + (16 << 20)  # a token of one byte is 8 bytes in an array and 40 in a list


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


def pack(
    data: bytes,
    predictor: Predictor,
    vocabulary: Vocabulary,
    *,
    streams: int = 0,
    window: int = 1024,
    overlap: int = 256,
    table_bits: int = Schedule.table_bits,
) -> Packed:
    """Pack as one block, and tell what every token cost; the arguments are those of `compress`.

    Args:
        table_bits: precision of the integer tables [bits, 16 .. 28].

    Raises:
        OutOfRange, NotFinite: see `compress`.
    """
    return _pack(data, predictor, vocabulary, Schedule(streams, window, overlap, table_bits))


def restore(packed: Packed, predictor: Predictor, vocabulary: Vocabulary) -> bytes:
    """Return the bytes of what `pack` made, by unpacking its payload."""
    return _unpack(packed.payload, packed.size, predictor, vocabulary, packed.schedule, base.Limits())


def _pack(data: bytes, predictor: Predictor, vocabulary: Vocabulary, schedule: Schedule) -> Packed:
    spelled = spell(data, vocabulary)
    count = len(spelled.ids)
    streams = schedule.streams_for(count, predictor)
    encoder, costs = Encoder(), np.zeros((2, count))
    first = [part.start for part in parts(count, streams)]

    def choose(stream: int, at: int, step: _Step) -> int:
        place = first[stream] + at
        token = spelled.ids[place]
        start, size, total = step.part(stream, token)
        encoder.encode(start, size, total)
        costs[:, place] = step.tables.ideal_bits(stream, token), np.log2(total / size)
        return token

    walk(predictor, count, streams, schedule, _Step, choose, "packing")
    literals = write_literals(spelled.literals)
    payload = base.varint(streams) + base.varint(count) + literals + encoder.finish()
    return Packed(payload, schedule, len(data), spelled, streams, len(literals), costs[0], costs[1])


def _unpack(
    payload: bytes, size: int, predictor: Predictor, vocabulary: Vocabulary, schedule: Schedule, limits: base.Limits
) -> bytes:
    cursor = base.Cursor(payload, "a block")
    streams, count = cursor.varint(), cursor.varint()
    if not 1 <= streams <= min(STREAMS_LIMIT, max(1, count)) or count > size:
        raise ValueError(f"{count} tokens in {streams} streams cannot stand for {size} bytes")
    literals = read_literals(cursor, count, size)
    limits.check_memory(schedule.memory(count, streams, predictor), "lm")
    decoder = Decoder(cursor.take(len(payload) - cursor.at))

    def choose(stream: int, at: int, step: _Step) -> int:
        token = step.find(stream, decoder)
        decoder.advance(*step.part(stream, token))
        return token

    ids = walk(predictor, count, streams, schedule, _Step, choose, "unpacking")
    if not decoder.is_exhausted:
        raise ValueError("bytes are left behind the last token")
    return unspell(Spelled(ids.tolist(), literals), vocabulary)


class _Step:
    """The running sums of one step's tables (K, V + 1)."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.cumulative = np.zeros((tables.counts.shape[0], tables.counts.shape[1] + 1), np.int64)
        np.cumsum(tables.counts, axis=1, out=self.cumulative[:, 1:])

    def part(self, stream: int, token: int) -> tuple[int, int, int]:
        row = self.cumulative[stream]
        return int(row[token]), int(row[token + 1] - row[token]), int(row[-1])

    def find(self, stream: int, decoder: Decoder) -> int:
        row = self.cumulative[stream]
        return int(np.searchsorted(row, decoder.target(int(row[-1])), side="right")) - 1
