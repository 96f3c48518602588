"""Zstandard, by the optional package `zstandard`. Source: Collet & Kucherawy (2021), RFC 8878."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kobza.codecs import base

BLOCK_LOG2 = 24
WINDOW = 1 << BLOCK_LOG2
decompress = base.unpack


def compress(data: bytes, *, level: int = 19) -> bytes:
    """Return `data` as a .kbz file of Zstandard blocks.

    Args:
        data: any bytes.
        level: effort [level, 1 .. 22].

    Returns:
        The file.

    Raises:
        OutOfRange: the level is not one.
        MissingExtra: the package zstandard is not installed.
    """
    return base.pack(data, coder(level=level), block_log2=base.fitting_block(len(data), BLOCK_LOG2))


def coder(data: bytes = b"", *, level: int = 19) -> base.Coder:
    """Return the coder for a `base.Writer`; `data` is not looked at, `level` as in `compress`."""
    base.check_range("level", level, 1, 22)
    zstandard = base.package("zstandard", "zstd")
    # neither size nor checksum: the container has both
    made = zstandard.ZstdCompressor(level=level, write_content_size=False, write_checksum=False)
    return base.Coder("zstd", lambda raw: bytes(made.compress(raw)))


def decoder(parameters: Mapping[str, bytes], supply: Mapping[str, Any]) -> base.Decode:
    """Return the block decoder."""
    zstandard = base.package("zstandard", "zstd")

    def decode(payload: bytes, size: int) -> bytes:
        expander = zstandard.ZstdDecompressor(max_window_size=WINDOW)
        try:
            # subtle: a frame may declare any size; read as a stream, never more than one byte too many
            with expander.stream_reader(payload, read_across_frames=False) as stream:
                raw: bytes = stream.read(size + 1)
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error
        return raw

    return decode


def memory(size: int, parameters: Mapping[str, bytes]) -> int:
    """Return the working memory [bytes] to decode a block of `size` bytes."""
    return 2 * size + WINDOW
