"""Burrows-Wheeler transform and Huffman codes, by Python's bz2.

Source: Burrows & Wheeler (1994), "A block-sorting lossless data compression algorithm", DEC SRC report 124.
"""

from __future__ import annotations

import bz2
from collections.abc import Mapping
from typing import Any

from kobza.codecs import base

BLOCK_LOG2 = 24
decompress = base.unpack


def compress(data: bytes, *, level: int = 9) -> bytes:
    """Return `data` as a .kbz file of bzip2 blocks.

    Args:
        data: any bytes.
        level: size of the sorted pieces [100 kB, 1 .. 9].

    Returns:
        The file.

    Raises:
        OutOfRange: the level is not one.
    """
    return base.pack(data, coder(level=level), block_log2=base.fitting_block(len(data), BLOCK_LOG2))


def coder(data: bytes = b"", *, level: int = 9) -> base.Coder:
    """Return the coder for a `base.Writer`; `data` is not looked at, `level` as in `compress`."""
    base.check_range("level", level, 1, 9)
    return base.Coder("bz2", lambda raw: bz2.compress(raw, level))


def decoder(parameters: Mapping[str, bytes], supply: Mapping[str, Any]) -> base.Decode:
    """Return the block decoder."""

    def decode(payload: bytes, size: int) -> bytes:
        try:
            return base.inflate(bz2.BZ2Decompressor(), payload, size)
        except (OSError, EOFError) as error:
            raise ValueError(str(error)) from error

    return decode


def memory(size: int, parameters: Mapping[str, bytes]) -> int:
    """Return the working memory [bytes] to decode a block of `size` bytes."""
    return 2 * size + (4 << 20)
