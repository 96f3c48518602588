"""Deflate, by Python's zlib. Source: Deutsch (1996), RFC 1951."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

from kobza.codecs import base

BLOCK_LOG2 = 20
decompress = base.unpack


def compress(data: bytes, *, level: int = 9) -> bytes:
    """Return `data` as a .kbz file of deflated blocks of 1 MiB.

    Args:
        data: any bytes.
        level: effort [level, 0 .. 9].

    Returns:
        The file.

    Raises:
        OutOfRange: the level is not one.
    """
    return base.pack(data, coder(level=level), block_log2=base.fitting_block(len(data), BLOCK_LOG2))


def coder(data: bytes = b"", *, level: int = 9) -> base.Coder:
    """Return the coder for a `base.Writer`; `data` is not looked at, `level` as in `compress`."""
    base.check_range("level", level, 0, 9)

    def encode(raw: bytes) -> bytes:
        # raw deflate with the largest tables: 0.1 % smaller than zlib's default of 8
        deflate = zlib.compressobj(level, zlib.DEFLATED, -15, 9)
        return deflate.compress(raw) + deflate.flush()

    return base.Coder("zlib", encode)


def decoder(parameters: Mapping[str, bytes], supply: Mapping[str, Any]) -> base.Decode:
    """Return the block decoder."""

    def decode(payload: bytes, size: int) -> bytes:
        try:
            return base.inflate(zlib.decompressobj(-15), payload, size)
        except zlib.error as error:
            raise ValueError(str(error)) from error

    return decode


def memory(size: int, parameters: Mapping[str, bytes]) -> int:
    """Return the working memory [bytes] to decode a block of `size` bytes."""
    return 2 * size + (64 << 10)
