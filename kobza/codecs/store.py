"""No compression: the bytes as they are, in blocks that carry their checksums. Source: the container's own format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kobza.codecs import base

BLOCK_LOG2 = 20
decompress = base.unpack


def compress(data: bytes) -> bytes:
    """Return `data` as a .kbz file of stored blocks.

    Args:
        data: any bytes.

    Returns:
        The file; 11 to 14 bytes a block and about 70 more than `data`.
    """
    return base.pack(data, block_log2=base.fitting_block(len(data), BLOCK_LOG2))


def coder(data: bytes = b"") -> base.Coder:
    """Return the coder for a `base.Writer`; `data` is not looked at."""
    return base.Coder("store", bytes)


def decoder(parameters: Mapping[str, bytes], supply: Mapping[str, Any]) -> base.Decode:
    """Return the block decoder."""
    return lambda payload, size: payload[: size + 1]


def memory(size: int, parameters: Mapping[str, bytes]) -> int:
    """Return the working memory [bytes] to decode a block of `size` bytes."""
    return size
