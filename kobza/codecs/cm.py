"""Context mixing in integers: the smallest files of the codecs without a model, the same on every machine.

Orders 1 to 6, the word, the word and the one before, and a match, mixed in the logistic domain; see
`native.plain_mixing`, which is the specification. Source: Mahoney (2005), Florida Tech report CS-2005-16.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kobza.codecs import base, native

BLOCK_LOG2 = 24
TABLES = 140 << 20  # bytes at most: 8 tables of 16 MiB, and what is small
decompress = base.unpack


def compress(data: bytes, *, block_log2: int = BLOCK_LOG2) -> bytes:
    """Return `data` as a .kbz file, about 1 MB/s; unpacking takes as long.

    Args:
        data: any bytes.
        block_log2: each block of 2^block_log2 bytes learns anew [log2 of bytes, 10 .. 24].

    Returns:
        The file.

    Raises:
        OutOfRange: the block size is not one.
    """
    base.check_range("block_log2", block_log2, 10, BLOCK_LOG2)
    return base.pack(data, coder(), block_log2=base.fitting_block(len(data), block_log2))


def coder(data: bytes = b"") -> base.Coder:
    """Return the coder for a `base.Writer`; `data` is not looked at."""
    return base.Coder("cm", native.mixing_encode)


def decoder(parameters: Mapping[str, bytes], supply: Mapping[str, Any]) -> base.Decode:
    """Return the block decoder."""

    def decode(payload: bytes, size: int) -> bytes:
        # a bit costs 1/2840 bit at least, so a block of this size needs more payload than that
        if size > 1024 and len(payload) < size // 2900:
            raise ValueError(f"{len(payload)} bytes cannot hold {size}")
        return native.mixing_decode(payload, size)

    return decode


def memory(size: int, parameters: Mapping[str, bytes]) -> int:
    """Return the working memory [bytes] to decode a block of `size` bytes."""
    return min(TABLES, 1024 * size + (8 << 20)) + 2 * size
