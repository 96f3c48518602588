"""Brotli, by the optional package `brotli`. Source: Alakuijala & Szabadka (2016), RFC 7932."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kobza.codecs import base

BLOCK_LOG2 = 24
WINDOW_LOG2 = 24
PIECE = 1 << 16
decompress = base.unpack


def compress(data: bytes, *, level: int = 11) -> bytes:
    """Return `data` as a .kbz file of Brotli blocks.

    Args:
        data: any bytes.
        level: effort [level, 0 .. 11].

    Returns:
        The file.

    Raises:
        OutOfRange: the level is not one.
        MissingExtra: the package brotli is not installed.
    """
    return base.pack(data, coder(level=level), block_log2=base.fitting_block(len(data), BLOCK_LOG2))


def coder(data: bytes = b"", *, level: int = 11) -> base.Coder:
    """Return the coder for a `base.Writer`; `data` is not looked at, `level` as in `compress`."""
    base.check_range("level", level, 0, 11)
    brotli = base.package("brotli", "brotli")
    return base.Coder("brotli", lambda raw: bytes(brotli.compress(raw, quality=level, lgwin=WINDOW_LOG2)))


def decoder(parameters: Mapping[str, bytes], supply: Mapping[str, Any]) -> base.Decode:
    """Return the block decoder."""
    brotli = base.package("brotli", "brotli")

    def decode(payload: bytes, size: int) -> bytes:
        expander = brotli.Decompressor()
        raw = bytearray()
        try:
            piece = expander.process(payload, output_buffer_limit=PIECE)
            while piece and len(raw) <= size:
                raw += piece
                piece = expander.process(b"", output_buffer_limit=PIECE)
        except brotli.error as error:
            raise ValueError(str(error)) from error
        if len(raw) != size or not expander.is_finished():
            raise ValueError(f"the payload does not give exactly {size} bytes")
        return bytes(raw)

    return decode


def memory(size: int, parameters: Mapping[str, bytes]) -> int:
    """Return the working memory [bytes] to decode a block of `size` bytes."""
    return 3 * size + (1 << WINDOW_LOG2)
