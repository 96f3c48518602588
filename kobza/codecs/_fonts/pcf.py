"""Fonts of the X window system as its server reads them, PCF.

Source: the format as the X.Org Foundation's libXfont reads and bdftopcf writes it.

The rest: the file without its bitmaps; its tables of numbers lie where they lay, by column, as differences from what
is to be expected: offsets from the sizes of what lies before, glyph numbers from the last one, widths from the last
glyph that is as wide. Of names such as uni0421 the digits are 1 where they count on from the name before.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kobza.codecs._fonts.grids import Grid, Whole, from_planes, planes

MAGIC = b"\1fcp"
METRICS, BITMAPS, INK_METRICS, ENCODINGS, WIDTHS, NAMES = 4, 8, 16, 32, 64, 128
ACCELERATORS = (2, 256)
COMPRESSED = INK_BOUNDS = 0x100
MOST_TABLES, MOST_NUMBERS = 64, 1 << 20
NONE = 0xFFFF  # no glyph
COUNTED = re.compile(rb"(?<![^\0])(uni|U\+|char)(\x01+|[0-9A-F]{1,6})(?=\0)")


class Table(NamedTuple):
    """One table of the file: its kind, its format, where it lies, and the byte order of its numbers."""

    kind: int
    format: int
    begin: int
    end: int

    @property
    def order(self) -> str:
        return ">" if self.format & 4 else "<"


class Stretch(NamedTuple):
    """Numbers that lie in a row in the file: where, how many rows of them, their columns and bytes each."""

    table: Table
    begin: int
    length: int
    columns: int
    size: int

    @property
    def end(self) -> int:
        return self.begin + self.length * self.columns * self.size


def take(raw: bytes, at: int) -> tuple[int, bytes, bytes]:
    """Return the end of the font that begins at `at`, its rest and its bits."""
    tables = _tables(raw[at : at + 8 + 16 * MOST_TABLES])
    end = at + max(table.end for table in tables)
    if end > len(raw):
        raise ValueError("the font is cut")
    file = bytearray(raw[at:end])
    begin, size = _bitmaps(file, tables)
    bits = bytes(file[begin : begin + size])
    if len(bits) != size:
        raise ValueError("the bitmaps are cut")
    file[begin : begin + size] = bytes(size)
    _through(file, tables, is_back=False)
    del file[begin : begin + size]
    return end, bytes(file), bits


def grid(rest: bytes) -> Grid:
    """Return where the glyphs lie."""
    return _grid(_whole(rest))


def give(rest: bytes, bits: bytes) -> bytes:
    """Return the file."""
    file = _whole(rest)
    begin, size = _bitmaps(file, _tables(file))
    file[begin : begin + size] = bits
    return bytes(file)


def _whole(rest: bytes) -> bytearray:
    """Return the file with zeros for its bits."""
    file = bytearray(rest)
    tables = _tables(rest)
    begin, size = _bitmaps(file, tables)
    if len(file) + size != max(table.end for table in tables):
        raise ValueError("the font is cut")
    file[begin:begin] = bytes(size)
    _through(file, tables, is_back=True)
    return file


def _tables(raw: bytes | bytearray) -> list[Table]:
    if raw[:4] != MAGIC or len(raw) < 8:
        raise ValueError("no PCF header")
    count = struct.unpack_from("<I", raw, 4)[0]
    if not 0 < count <= MOST_TABLES or len(raw) < 8 + 16 * count:
        raise ValueError("no PCF tables")
    found = []
    for i in range(count):
        kind, format_, size, begin = struct.unpack_from("<4I", raw, 8 + 16 * i)
        if begin < 8 + 16 * count or begin + size > 1 << 24:
            raise ValueError("a table lies outside the file")
        if kind in ACCELERATORS:  # subtle: bdftopcf declares 100 bytes for them, whatever they take
            size = min(size, 72 if format_ & INK_BOUNDS else 48)
        found.append(Table(kind, format_, begin, begin + size))
    spans = sorted((table.begin, table.end) for table in found)
    if len({table.kind for table in found}) < count or any(a[1] > b[0] for a, b in pairwise(spans)):
        raise ValueError("tables overlap, or two are of a kind")
    return found


def _only(tables: list[Table], kind: int) -> Table:
    for table in tables:
        if table.kind == kind:
            return table
    raise ValueError("a font has metrics and bitmaps")


def _number(file: bytearray, table: Table, at: int) -> int:
    if at + 4 > table.end:
        raise ValueError("a table is cut")
    return int(struct.unpack_from(table.order + "I", file, at)[0])


def _bitmaps(file: bytearray, tables: list[Table]) -> tuple[int, int]:
    """Return where the bits begin and how many bytes they take."""
    table = _only(tables, BITMAPS)
    at = table.begin + 8 + 4 * _number(file, table, table.begin + 4)
    size = _number(file, table, at + 4 * (table.format & 3))
    if at + 16 + size > table.end:
        raise ValueError("the bitmaps are cut")
    return at + 16, size


def _stretch(file: bytearray, table: Table) -> Stretch | None:
    """Return the numbers of a table that pack better by column."""
    after = table.begin + 8
    if table.kind in (METRICS, INK_METRICS) and table.format & COMPRESSED:
        if table.begin + 6 > table.end:
            raise ValueError("a table is cut")
        count = struct.unpack_from(table.order + "H", file, table.begin + 4)[0]
        made = Stretch(table, table.begin + 6, count, 5, 1)
    elif table.kind in (METRICS, INK_METRICS):
        made = Stretch(table, after, _number(file, table, table.begin + 4), 6, 2)
    elif table.kind in (BITMAPS, WIDTHS, NAMES):
        made = Stretch(table, after, _number(file, table, table.begin + 4), 1, 4)
    elif table.kind == ENCODINGS:
        if table.begin + 14 > table.end:
            raise ValueError("a table is cut")
        low2, high2, low1, high1 = struct.unpack_from(table.order + "4H", file, table.begin + 4)
        made = Stretch(table, table.begin + 14, max(0, high2 - low2 + 1) * max(0, high1 - low1 + 1), 1, 2)
    else:
        return None
    if made.end > table.end or made.length > MOST_NUMBERS:
        raise ValueError("a table is cut")
    return made


def _through(file: bytearray, tables: list[Table], *, is_back: bool) -> None:
    """Turn every table of numbers into columns of differences, or back; metrics first, since others depend on them."""
    expected: dict[int, Callable[..., NDArray[np.int64]]] = {
        BITMAPS: _offsets, WIDTHS: _widths, NAMES: _names, ENCODINGS: _encodings,
    }  # fmt: skip
    seen = [stretch for table in tables if (stretch := _stretch(file, table))]
    metrics = [stretch for stretch in seen if stretch.table.kind in (METRICS, INK_METRICS)]
    others = [stretch for stretch in seen if stretch not in metrics]
    for stretch in [*metrics, *others] if is_back else [*others, *metrics]:
        part = bytes(file[stretch.begin : stretch.end])
        if is_back:
            numbers = from_planes(part, stretch.size)
            if stretch.table.kind in expected:
                numbers = expected[stretch.table.kind](file, tables, stretch, numbers, is_back=True)
            numbers = numbers.reshape(stretch.columns, -1).T.reshape(-1) & (1 << 8 * stretch.size) - 1
            file[stretch.begin : stretch.end] = numbers.astype(f"{stretch.table.order}u{stretch.size}").tobytes()
        else:
            numbers = np.frombuffer(part, f"{stretch.table.order}u{stretch.size}").astype(np.int64)
            numbers = numbers.reshape(-1, stretch.columns).T.reshape(-1)
            if stretch.table.kind in expected:
                numbers = expected[stretch.table.kind](file, tables, stretch, numbers, is_back=False)
            file[stretch.begin : stretch.end] = planes(numbers & (1 << 8 * stretch.size) - 1, stretch.size)
        if stretch.table.kind == NAMES:
            strings = slice(stretch.end + 4, stretch.table.end)
            file[strings] = _counted(bytes(file[strings]), is_back=is_back)


def _counted(strings: bytes, *, is_back: bool) -> bytes:
    """Put 1 for the digits of names that count on from the name before, or the digits back."""
    expected = 0

    def change(found: re.Match[bytes]) -> bytes:
        nonlocal expected
        word, digits = found.groups()
        base = 10 if word == b"char" else 16
        wanted = (b"%d" if base == 10 else b"%04X") % expected
        if is_back and digits[0] == 1:
            digits = wanted
        try:
            expected = int(digits, base) + 1
        except ValueError:
            return found.group()
        return word + (b"\1" * len(digits) if digits == wanted and not is_back else digits)

    return COUNTED.sub(change, strings)


def _metrics(file: bytearray, tables: list[Table]) -> Whole:
    """Return (N, 5): left, right, width, ascent, descent."""
    stretch = _stretch(file, _only(tables, METRICS))
    assert stretch is not None
    part = bytes(file[stretch.begin : stretch.end])
    if stretch.size == 1:
        return np.frombuffer(part, np.uint8).astype(np.int64).reshape(-1, 5) - 128
    return np.frombuffer(part, stretch.table.order + "i2").astype(np.int64).reshape(-1, 6)[:, :5]


def _sizes(file: bytearray, tables: list[Table]) -> tuple[Whole, Whole, Whole]:
    """Return width, height and bytes per row of every glyph."""
    metrics, pad = _metrics(file, tables), 1 << (_only(tables, BITMAPS).format & 3)
    width, height = metrics[:, 1] - metrics[:, 0], metrics[:, 3] + metrics[:, 4]
    return width, height, (width + 8 * pad - 1) // (8 * pad) * pad


def _offsets(file: bytearray, tables: list[Table], stretch: Stretch, numbers: Whole, *, is_back: bool) -> Whole:
    _, height, stride = _sizes(file, tables)
    if len(height) != stretch.length:
        raise ValueError("the bitmaps are not as many as the metrics")
    step = np.concatenate([[0], (height * stride)[:-1]])[: stretch.length]
    if is_back:
        return np.cumsum(numbers + step)
    return np.diff(numbers, prepend=0) - step


def _widths(file: bytearray, tables: list[Table], stretch: Stretch, numbers: Whole, *, is_back: bool) -> Whole:
    """Each width against the last one of a glyph that advances as much."""
    advance = _metrics(file, tables)[:, 2].tolist()
    last: dict[int, int] = {}
    out = []
    for key, number in zip(advance[: stretch.length], numbers.tolist(), strict=True):
        other = number + last.get(key, 0) if is_back else number - last.get(key, 0)
        other &= 0xFFFFFFFF
        last[key] = other if is_back else number
        out.append(other)
    return np.array(out, np.int64)


def _names(file: bytearray, tables: list[Table], stretch: Stretch, numbers: Whole, *, is_back: bool) -> Whole:
    """Each name is expected to lie behind the one before."""
    strings = bytes(file[stretch.end + 4 : stretch.table.end])
    out, expected = [], 0
    for number in numbers.tolist():
        other = (number + expected if is_back else number - expected) & 0xFFFFFFFF
        at = other if is_back else number
        end = strings.find(b"\0", at)
        expected = end + 1 if end >= 0 else at
        out.append(other)
    return np.array(out, np.int64)


def _encodings(file: bytearray, tables: list[Table], stretch: Stretch, numbers: Whole, *, is_back: bool) -> Whole:
    """0 is the glyph behind the last one, 1 none, others by how far they lie off; 1 and none trade places."""
    out, expected = [], 0
    for number in numbers.tolist():
        traded = NONE - expected & 0xFFFF
        off = number if is_back else number - expected & 0xFFFF
        off = 1 if off == traded else traded if off == 1 else off
        other = off + expected & 0xFFFF if is_back else off
        glyph = other if is_back else number
        expected = glyph + 1 & 0xFFFF if glyph != NONE else expected
        out.append(other)
    return np.array(out, np.int64)


def _grid(file: bytearray) -> Grid:
    tables = _tables(file)
    stretch = _stretch(file, _only(tables, BITMAPS))
    assert stretch is not None
    format_, metrics = stretch.table.format, _metrics(file, tables)
    width, height, strides = _sizes(file, tables)
    if len(width) != stretch.length:
        raise ValueError("the bitmaps are not as many as the metrics")
    starts = np.frombuffer(bytes(file[stretch.begin : stretch.end]), stretch.table.order + "u4").astype(np.int64)
    is_reversed, unit = not format_ & 8, 1 << (format_ >> 4 & 3)
    boxes = np.stack([width, height, metrics[:, 0], -metrics[:, 3]], 1)
    unit = unit if bool(format_ & 4) == is_reversed else 1
    return Grid(boxes, starts, strides, _bitmaps(file, tables)[1], is_reversed, unit).check()
