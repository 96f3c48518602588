"""Fonts of the Linux console, PSF 1 and 2.

Source: the formats as the kbd project describes them (psfaddtable, doc/font-formats).

The rest: the header, then the table of characters as varints: 0 ends a glyph, 1 begins a sequence, other numbers are
2 + the difference from the character that would follow, zigzag.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

from kobza.codecs._fonts.grids import MOST_GLYPHS, Grid
from kobza.codecs.container.fields import Cursor, varint

MAGIC_1, MAGIC_2 = b"\x36\x04", b"\x72\xb5\x4a\x86"
END, SEQUENCE = -1, -2
MOST_VALUES = 1 << 20  # in the table of characters


def _head(raw: bytes, at: int = 0) -> tuple[int, int, int, int, int, bool]:
    """Return bytes of the header, glyphs, bytes of a glyph, width, height, whether characters are listed."""
    if raw[at : at + 4] == MAGIC_2 and len(raw) >= at + 32:
        _, size, flags, count, charsize, height, width = struct.unpack_from("<7I", raw, at + 4)
        if size < 32 or not 0 < count <= MOST_GLYPHS or not charsize or size + count * charsize > len(raw):
            raise ValueError("no PSF 2 header")
        return size, count, charsize, width, height, bool(flags & 1)
    if raw[at : at + 2] != MAGIC_1 or len(raw) < at + 4:
        raise ValueError("no PSF header")
    mode, height = raw[at + 2], raw[at + 3]
    if mode > 7 or not height:
        raise ValueError("no PSF 1 header")
    return 4, 512 if mode & 1 else 256, height, 8, height, bool(mode & 6)


def take(raw: bytes, at: int) -> tuple[int, bytes, bytes]:
    """Return the end of the font that begins at `at`, its rest and its bits."""
    size, count, charsize, _, _, is_listed = _head(raw, at)
    begin, end = at + size, at + size + count * charsize
    if end > len(raw):
        raise ValueError("the font is cut")
    rest = raw[at:begin]
    if is_listed:
        end, values = (_utf16 if size == 4 else _utf8)(raw, end, count)
        rest += _differences(values)
    return end, rest, raw[begin : begin + count * charsize]


def grid(rest: bytes) -> Grid:
    """Return where the glyphs lie."""
    _, count, charsize, width, height, _ = _head(rest + bytes(_hole(rest)))
    boxes = np.tile(np.array([width, height, 0, 0]), (count, 1))
    stride = np.full(count, (width + 7) // 8)
    return Grid(boxes, np.arange(count) * charsize, stride, count * charsize).check()


def give(rest: bytes, bits: bytes) -> bytes:
    """Return the file."""
    size, _, _, _, _, is_listed = _head(rest + bytes(_hole(rest)))
    table = b""
    if is_listed:
        table = b"".join(_spelled(value, size == 4) for value in _values(rest[size:]))
    return rest[:size] + bits + table


def _hole(rest: bytes) -> int:
    """Return the bytes that the bits take, for a header that is read without them."""
    if rest[:4] != MAGIC_2 or len(rest) < 32:
        return 0
    count, charsize = struct.unpack_from("<2I", rest, 16)
    if count * charsize > 1 << 24:
        raise ValueError("the font is larger than a block")
    return int(count * charsize)


def _utf16(raw: bytes, at: int, count: int) -> tuple[int, list[int]]:
    size = min((len(raw) - at) // 2, MOST_VALUES)
    values = np.frombuffer(raw, "<u2", size, at).astype(np.int64)
    ends = np.flatnonzero(values == 0xFFFF)
    if len(ends) < count:
        raise ValueError("the list of characters is cut")
    values = values[: int(ends[count - 1]) + 1]
    return at + 2 * len(values), np.where(values >= 0xFFFE, values - 0x10000, values).tolist()


def _utf8(raw: bytes, at: int, count: int) -> tuple[int, list[int]]:
    values: list[int] = []
    for _ in range(count):
        end = raw.find(b"\xff", at)
        if end < 0:
            raise ValueError("the list of characters is cut")
        for i, part in enumerate(raw[at:end].split(b"\xfe")):
            values += [SEQUENCE] * (i > 0) + [ord(c) for c in part.decode("utf-8")]
        values.append(END)
        at = end + 1
        if len(values) > MOST_VALUES:
            raise ValueError("the list of characters is too long")
    return at, values


def _differences(values: list[int]) -> bytes:
    """Return characters as differences from what would follow: the one before, or the first of the glyph before."""
    out, expected, first, is_first = [], 0, 0, True
    for value in values:
        if value < 0:
            out.append(b"\1" if value == SEQUENCE else b"\0")
            if value == END:
                expected, is_first = first, True
            continue
        step = value - expected
        out.append(varint(2 + (2 * step if step >= 0 else -2 * step - 1)))
        expected = value + 1
        if is_first:
            first, is_first = expected, False
    return b"".join(out)


def _values(packed: bytes) -> Iterator[int]:
    cursor, expected, first, is_first = Cursor(packed, "a list of characters"), 0, 0, True
    for _ in range(MOST_VALUES):
        if cursor.is_done:
            return
        number = cursor.varint()
        if number < 2:
            yield -1 - number
            if not number:
                expected, is_first = first, True
            continue
        number -= 2
        value = expected + (-(number + 1) // 2 if number & 1 else number // 2)
        yield value
        expected = value + 1
        if is_first:
            first, is_first = expected, False


def _spelled(value: int, is_16: bool) -> bytes:
    if is_16:
        return (value & 0xFFFF).to_bytes(2, "little")
    return bytes((256 + value,)) if value < 0 else chr(value).encode("utf-8")
