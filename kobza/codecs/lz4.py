"""LZ4, by the optional package `lz4`. Source: Collet, lz4 block format, github.com/lz4/lz4/doc/lz4_Block_format.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kobza.codecs import base

BLOCK_LOG2 = 22
decompress = base.unpack


def compress(data: bytes, *, level: int = 12) -> bytes:
    """Return `data` as a .kbz file of LZ4 blocks.

    Args:
        data: any bytes.
        level: effort [level, 1 .. 12].

    Returns:
        The file.

    Raises:
        OutOfRange: the level is not one.
        MissingExtra: the package lz4 is not installed.
    """
    return base.pack(data, coder(level=level), block_log2=base.fitting_block(len(data), BLOCK_LOG2))


def coder(data: bytes = b"", *, level: int = 12) -> base.Coder:
    """Return the coder for a `base.Writer`; `data` is not looked at, `level` as in `compress`."""
    base.check_range("level", level, 1, 12)
    block = base.package("lz4.block", "lz4")

    def encode(raw: bytes) -> bytes:
        return bytes(block.compress(raw, mode="high_compression", compression=level, store_size=False))

    return base.Coder("lz4", encode)


def decoder(parameters: Mapping[str, bytes], supply: Mapping[str, Any]) -> base.Decode:
    """Return the block decoder."""
    block = base.package("lz4.block", "lz4")

    def decode(payload: bytes, size: int) -> bytes:
        try:
            return bytes(block.decompress(payload, uncompressed_size=size))
        except block.LZ4BlockError as error:
            raise ValueError(str(error)) from error

    return decode


def memory(size: int, parameters: Mapping[str, bytes]) -> int:
    """Return the working memory [bytes] to decode a block of `size` bytes."""
    return 2 * size
