"""LZMA2, the algorithm of xz, by Python's lzma. Source: the .xz file format, tukaani.org/xz/xz-file-format.txt.

Blocks are raw LZMA2 with a dictionary as large as the largest block: a payload cannot declare a larger one.
"""

from __future__ import annotations

import lzma
from collections.abc import Mapping
from typing import Any

from kobza.codecs import base

BLOCK_LOG2 = 24
DICTIONARY = 1 << BLOCK_LOG2
decompress = base.unpack


def compress(data: bytes, *, level: int = 9, is_extreme: bool = True) -> bytes:
    """Return `data` as a .kbz file of LZMA2 blocks of 16 MiB.

    Args:
        data: any bytes.
        level: effort [level, 0 .. 9].
        is_extreme: try harder still; slower, rarely smaller by more than 1 %.

    Returns:
        The file.

    Raises:
        OutOfRange: the level is not one.
    """
    made = coder(level=level, is_extreme=is_extreme)
    return base.pack(data, made, block_log2=base.fitting_block(len(data), BLOCK_LOG2))


def coder(data: bytes = b"", *, level: int = 9, is_extreme: bool = True) -> base.Coder:
    """Return the coder for a `base.Writer`; `data` is not looked at, options as in `compress`."""
    preset = base.check_range("level", level, 0, 9) | (lzma.PRESET_EXTREME if is_extreme else 0)

    def encode(raw: bytes) -> bytes:
        # subtle: a dictionary of the block's own size keeps the encoder's memory small for small blocks
        window = max(4096, min(DICTIONARY, 1 << (len(raw) - 1).bit_length()))
        filters = [{"id": lzma.FILTER_LZMA2, "preset": preset, "dict_size": window}]
        return lzma.compress(raw, lzma.FORMAT_RAW, filters=filters)

    return base.Coder("lzma", encode)


def decoder(parameters: Mapping[str, bytes], supply: Mapping[str, Any]) -> base.Decode:
    """Return the block decoder."""

    def decode(payload: bytes, size: int) -> bytes:
        filters = [{"id": lzma.FILTER_LZMA2, "dict_size": DICTIONARY}]
        try:
            return base.inflate(lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters), payload, size)
        except lzma.LZMAError as error:
            raise ValueError(str(error)) from error

    return decode


def memory(size: int, parameters: Mapping[str, bytes]) -> int:
    """Return the working memory [bytes] to decode a block of `size` bytes."""
    return 2 * size + DICTIONARY
