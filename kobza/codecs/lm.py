"""A language model as a codec: arithmetic coding with its next-token probabilities.

Source: Shannon (1948) for the code length; Deletang et al. (2024), "Language Modeling Is Compression",
arXiv:2309.10668, for the use with language models.

Parameters in the header: see `_settings.write_settings`. A block's payload: streams varint, tokens varint, the literals
(bytes that do not survive the tokenizer, such as invalid UTF-8, each before the token of its position; see
`_lockstep.write_literals`), then the range coder's bytes to the end. Every block is unpacked and compared before it is
written. Unpacking needs the same model and the same arithmetic: the header names both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from kobza.codecs import _settings, base
from kobza.codecs._lockstep import Block, Ids, Packed, Predictor, Schedule, Tables
from kobza.codecs._settings import VERSION, decompress, described
from kobza.codecs._spelling import Vocabulary
from kobza.codecs.range_coder import Decoder, Encoder

__all__ = [
    "BLOCK_LOG2", "VERSION", "Packed", "Predictor", "Vocabulary", "coder", "compress", "decoder", "decompress",
    "described", "memory", "pack", "restore",
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
    record: str = "auto",
) -> bytes:
    """Return `data` as a .kbz file, packed with a model and unpacked again to be sure.

    Args:
        data: what to pack; any bytes, empty too.
        predictor: the model.
        vocabulary: its tokenizer.
        streams: streams coded in lockstep [count, 0 .. 256]; 0 takes one per 256 tokens, at most 32 and 768 MiB of
            caches. More streams are faster and larger, because each begins without context.
        window: tokens that the model sees at most [tokens, 1 .. 1048576]; never more than it was trained for.
        overlap: tokens of a full window that the next one sees again [tokens, 0 .. window - 1].
        block_log2: blocks of 2^block_log2 bytes, each beginning without context [log2 of bytes, 10 .. 24].
        record: how the file names model, tokenizer and arithmetic [auto, brief or full]; brief by the first bytes of
            their digests, full in words, 250 bytes more; auto is brief for less than 1 MiB.

    Returns:
        The file; it names model, tokenizer and arithmetic.

    Raises:
        OutOfRange: an option outside its range.
        NotFinite: the model's logits are NaN or infinite; the message names the token.
        NotReproducible: a block did not come back.
    """
    base.check_range("block_log2", block_log2, 10, 24)
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
        costs: takes the ideal code length of every block [bits], its literals at their packed size.
    """
    block = Block(predictor, vocabulary, Schedule(streams, window, overlap).within(predictor.context), _Whole)
    return _settings.coder("lm", block, len(data), record, costs)


def decoder(parameters: Mapping[str, bytes], supply: Mapping[str, Any]) -> base.Decode:
    """Return the block decoder; `supply` holds "predictor" and "vocabulary", and "is_forced" to try it anyway.

    Raises:
        ModelMissing, ModelMismatch, NotReproducible, UnknownCodec: see `_settings.read_settings`.
    """
    return _settings.decoder(parameters, supply, lambda vocabulary: _Whole)


def memory(size: int, parameters: Mapping[str, bytes]) -> int:
    """Return the working memory [bytes] to decode a block of `size` bytes; the model's own is judged with the model."""
    return 56 * size + (16 << 20)  # a token of one byte is 8 bytes in an array and 40 in a list


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
    schedule = Schedule(streams, window, overlap, table_bits).within(predictor.context)
    return Block(predictor, vocabulary, schedule, _Whole).pack(data)


def restore(packed: Packed, predictor: Predictor, vocabulary: Vocabulary) -> bytes:
    """Return the bytes of what `pack` made, by unpacking its payload."""
    return Block(predictor, vocabulary, packed.schedule, _Whole).decode(packed.payload, packed.size)


class _Whole:
    """Every token is one symbol of its step's table."""

    def __init__(self, streams: int, size: int) -> None:
        pass

    def prepare(self, tables: Tables) -> Ids:
        """Return the running sums (K, V + 1)."""
        cumulative = np.zeros((tables.counts.shape[0], tables.counts.shape[1] + 1), np.int64)
        np.cumsum(tables.counts, axis=1, out=cumulative[:, 1:])
        return cumulative

    def put(self, encoder: Encoder, stream: int, token: int, cumulative: Ids) -> float:
        """Code a token; return its price [bits]."""
        start, size, total = _part(cumulative[stream], token)
        encoder.encode(start, size, total)
        return math.log2(total / size)

    def get(self, decoder: Decoder, stream: int, cumulative: Ids) -> int:
        """Return the next token."""
        row = cumulative[stream]
        token = int(np.searchsorted(row, decoder.target(int(row[-1])), side="right")) - 1
        decoder.advance(*_part(row, token))
        return token


def _part(row: Ids, token: int) -> tuple[int, int, int]:
    return int(row[token]), int(row[token + 1] - row[token]), int(row[-1])
