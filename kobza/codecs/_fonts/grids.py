"""Where glyphs lie in the bits of a font, and their rows as numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDEST = 64  # pixels of a row in one number
LARGEST = 65535  # pixels of a side
MOST_GLYPHS = 1 << 18  # of a block
REVERSED = np.array([int(f"{byte:08b}"[::-1], 2) for byte in range(256)], np.uint8)
Rows = NDArray[np.uint64]
Whole = NDArray[np.int64]


@dataclass(frozen=True)
class Grid:
    """The glyphs of a font.

    Args:
        boxes: (N, 4): width, height, left, top [pixels]; left and top are those of the box seen from one common corner.
        starts: (N,) first byte of each glyph in the bits.
        strides: (N,) bytes from one row of a glyph to the next.
        size: the bits [bytes].
        is_reversed: the leftmost pixel is the lowest bit of its byte.
        unit: bytes that lie in reverse order [1, 2, 4 or 8]; it divides all strides.
    """

    boxes: Whole
    starts: Whole
    strides: Whole
    size: int
    is_reversed: bool = False
    unit: int = 1

    def check(self) -> Grid:
        """Return the grid with glyphs wider than 64 cut into upright strips of whole bytes.

        Raises:
            ValueError: a glyph is larger than 65535 or lies outside the bits, or there are more pixels than bits.
        """
        width, height = self.boxes[:, 0], self.boxes[:, 1]
        tall = np.where(width > 0, height, 0)
        if (self.boxes[:, :2] < 0).any() or (self.boxes[:, :2] > LARGEST).any():
            raise ValueError(f"a glyph is not 0 to {LARGEST} pixels wide and high")
        if (self.starts < 0).any() or (self.strides > self.size).any() or (self.strides * 8 < width).any():
            raise ValueError("a glyph lies outside the bits")
        if (self.strides % self.unit).any():
            raise ValueError("a row is not made of whole units")
        if int((tall * width).sum()) > 8 * self.size or int((tall * -(-width // WIDEST)).sum()) > self.size:
            raise ValueError("glyphs share their bits")
        if ((self.starts + tall * self.strides)[tall > 0] > self.size).any():
            raise ValueError("a glyph lies outside the bits")
        return self._strips() if (width > WIDEST).any() else self

    def _strips(self) -> Grid:
        count = np.where(self.heights > 0, -(-self.boxes[:, 0] // WIDEST), 1)
        each = np.repeat((-(-self.boxes[:, 0] // 8) + count - 1) // count, count)  # bytes across a strip
        number = np.arange(len(each)) - np.repeat(np.cumsum(count) - count, count)
        boxes = np.repeat(self.boxes, count, axis=0)
        boxes[:, 0] = np.minimum(boxes[:, 0] - 8 * each * number, np.where(each > 0, 8 * each, 0)).clip(0)
        starts, strides = np.repeat(self.starts, count) + each * number, np.repeat(self.strides, count)
        if self.unit > 1:
            raise ValueError("wide glyphs whose bytes lie in reverse are not taken apart")
        return replace(self, boxes=boxes, starts=starts, strides=strides)

    def full(self) -> Grid:
        """Return the grid with what lies behind each row, up to the next, as pixels; of strips, up to a byte."""
        boxes, bits = self.boxes.copy(), 8 * self.strides
        boxes[:, 0] = np.where(bits > WIDEST, (boxes[:, 0] + 7) // 8 * 8, bits)
        return replace(self, boxes=boxes)

    @cached_property
    def heights(self) -> Whole:
        """Rows of each glyph that hold pixels."""
        return np.where(self.boxes[:, 0] > 0, self.boxes[:, 1], 0)

    @property
    def pixels(self) -> int:
        """Pixels of all glyphs [count]."""
        return int((self.boxes[:, 0] * self.heights).sum())

    def shapes(self) -> bytes:
        """Return width, height, left, top of all glyphs as the kernel wants them: on one canvas of 64 columns."""
        shapes = self.boxes.copy()
        shapes[:, 1] = self.heights
        used = self.heights > 0
        for column, most in ((2, WIDEST), (3, LARGEST)):
            shapes[:, column] -= shapes[used, column].min() if used.any() else 0
            shapes[~used, column - 2 :: 2] = 0
            if (shapes[:, column] + shapes[:, column - 2] > most).any():
                shapes[:, column] = 0
        return shapes.astype("=u2").tobytes()

    def places(self) -> tuple[Whole, Whole]:
        """Return the first byte of every row in the bits, and how many bytes of it hold pixels."""
        count = self.heights
        first = np.repeat(self.starts, count)
        row = np.arange(len(first)) - np.repeat(np.cumsum(count) - count, count)
        return first + row * np.repeat(self.strides, count), np.repeat((self.boxes[:, 0] + 7) // 8, count)

    def masks(self) -> Rows:
        """Return the pixels that each row has."""
        width = np.repeat(self.boxes[:, 0], self.heights).astype(np.uint64)
        return ~((np.uint64(1) << (np.uint64(64) - width) % np.uint64(64)) - np.uint64(1))


def rows_of(bits: bytes, grid: Grid) -> Rows:
    """Return every row of every glyph as a number whose top bit is the leftmost pixel."""
    first, used = grid.places()
    source = np.frombuffer(bits, np.uint8)
    source = REVERSED[source] if grid.is_reversed else source
    rows = np.zeros(len(first), np.uint64)
    for k in range(int(used.max(initial=0))):
        has = used > k
        rows[has] |= source[first[has] + (k ^ grid.unit - 1)].astype(np.uint64) << np.uint64(56 - 8 * k)
    return rows & grid.masks()


def bits_of(rows: Rows, grid: Grid) -> bytes:
    """Return the bits of a font that has these rows and nothing else."""
    first, used = grid.places()
    bits = np.zeros(grid.size, np.uint8)
    for k in range(int(used.max(initial=0))):
        has = used > k
        part = (rows[has] >> np.uint64(56 - 8 * k)).astype(np.uint8)
        np.bitwise_or.at(bits, first[has] + (k ^ grid.unit - 1), REVERSED[part] if grid.is_reversed else part)
    return bits.tobytes()


def packed_rows(rows: Rows, grid: Grid) -> bytes:
    """Return all pixels glyph after glyph, eight to a byte, without padding between rows."""
    pixels = np.unpackbits(rows.astype(">u8").view(np.uint8).reshape(-1, 8), axis=1)
    width = np.repeat(grid.boxes[:, 0], grid.heights)
    return np.packbits(pixels[np.arange(64) < width[:, None]]).tobytes()


def unpacked_rows(packed: bytes, grid: Grid) -> Rows:
    """Return the rows of `packed_rows`."""
    width = np.repeat(grid.boxes[:, 0], grid.heights)
    pixels = np.zeros((len(width), 64), np.uint8)
    inside = np.arange(64) < width[:, None]
    pixels[inside] = np.unpackbits(np.frombuffer(packed, np.uint8))[: int(inside.sum())]
    return np.packbits(pixels, axis=1).view(">u8").reshape(-1).astype(np.uint64)


def planes(numbers: NDArray[Any], size: int) -> bytes:
    """Return numbers of `size` bytes each as their highest bytes, then the next ones, down to the lowest."""
    return np.ascontiguousarray(numbers.astype(f">u{size}").view(np.uint8).reshape(-1, size).T).tobytes()


def from_planes(raw: bytes, size: int) -> Whole:
    """Return the numbers of `planes`."""
    return (
        np.ascontiguousarray(np.frombuffer(raw, np.uint8).reshape(size, -1).T).view(f">u{size}")[:, 0].astype(np.int64)
    )
