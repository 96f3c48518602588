"""ULZ: byte-aligned LZ77 with a window of 128 KiB, for the least delay. Source: Ilya Muravyov's ulz (public domain).

`encode` and `decode` are the bare format, without a header and without any check; `compress` puts it into the
container, which knows the size and finds every damage.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kobza.codecs import base, native

BLOCK_LOG2 = 22
decompress = base.unpack
encode = native.ulz_encode
decode = native.ulz_decode


def compress(data: bytes, *, level: int = 6) -> bytes:
    """Return `data` as a .kbz file of ULZ blocks of 4 MiB.

    Args:
        data: any bytes.
        level: effort [level, 1 .. 9]; 1 to 4 greedy, 5 to 7 one byte ahead, 8 and 9 the cheapest parse.

    Returns:
        The file.

    Raises:
        OutOfRange: the level is not one.
    """
    return base.pack(data, coder(level=level), block_log2=base.fitting_block(len(data), BLOCK_LOG2))


def coder(data: bytes = b"", *, level: int = 6) -> base.Coder:
    """Return the coder for a `base.Writer`; `data` is not looked at, `level` as in `compress`."""
    base.check_range("level", level, 1, 9)
    return base.Coder("ulz", lambda raw: encode(raw, level))


def decoder(parameters: Mapping[str, bytes], supply: Mapping[str, Any]) -> base.Decode:
    """Return the block decoder."""
    return decode


def memory(size: int, parameters: Mapping[str, bytes]) -> int:
    """Return the working memory [bytes] to decode a block of `size` bytes."""
    return 2 * size
