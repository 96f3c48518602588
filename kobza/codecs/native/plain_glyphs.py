"""Glyphs of a bitmap font in plain Python: the specification of `font`'s payload, integers only.

Rows are numbers of 64 bits, the leftmost pixel on top, and are moved right by the glyph's `left` first: so they share
one canvas. Each pixel is predicted from 22 contexts:

    by itself   templates of 12 to 29 pixels around, as in JBIG2; the whole row so far with one and two rows above, with
                its place, with all of the glyph; the columns above
    by others   3 x 3 pixels of the glyph before and of the one of the last 1024 that agrees best, late rows weighing
                more; the row that followed the same beginning, and that followed the same three rows
    by place    the row mirrored about the axis that the rows above have, the pixel mirrored about the axis that
                the row above and the whole glyph have; the distance from all four sides

A context's slot holds a probability and how many zeros and ones it saw lately; what such counts are worth, a map learns
per context. Both go through four sets of weights, one of them picked by what earlier guesses in this row were worth, a
fifth that mixes the four, and two last tables.

Source: Howard, Kossentini, Martins, Forchhammer & Rucklidge (1998), "The emerging JBIG2 standard",
doi:10.1109/76.735380; Mahoney (2013), "Data Compression Explained", section 4.3.

The payload is the binary arithmetic code of `plain_network`.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from kobza.codecs.native.plain_logistic import RECIPROCAL, SQUASH, STRETCH, approach, between, log2_above, train
from kobza.codecs.native.plain_network import FIRST_FINAL, M64, PHI, SPREAD, Decoder, Encoder, scatter, weighted

CONTEXTS, SETS, WINDOW, UP = 22, 4, 1024, 8
MAP_LIMIT, SLOT_LIMIT = 60, 28  # observations after which a map, a slot forget at a steady rate
BEST, SECOND, WHOLE, BEFORE, BEGINNING, BEHIND, MIRRORED = range(7)
ALIKE = (BEST, SECOND, WHOLE, BEFORE)


class Shape(NamedTuple):
    """A glyph's box on the canvas [pixels]; left + width is at most 64."""

    width: int
    height: int
    left: int
    top: int


def _around(row: int, x: int) -> int:
    """Return the pixels x - 4 .. x + 4 of a row."""
    return (row << x - 4 & M64 if x >= 4 else row >> 4 - x) >> 55


def _part(nine: int, left: int, right: int) -> int:
    """Return of nine pixels those up to `left` before and `right` behind the one in the middle."""
    return nine >> 4 - right & (1 << left + right + 1) - 1


def _axis_of(row: int) -> int:
    """Return the sum of the first and the last place of a pixel."""
    return 64 - row.bit_length() + 64 - (row & -row).bit_length()


def _pixel(nine: int) -> int:
    return nine >> 4 & 1


class _Glyphs:
    """Everything learned so far, the glyph and the row at hand."""

    def __init__(self, shapes: list[Shape], coder: Encoder | Decoder) -> None:
        self.shapes, self.coder = shapes, coder
        self.first, rows = [], 0
        for shape in shapes:
            self.first.append(rows)
            rows += shape.height
        self.table_bits = between(10, log2_above(sum(s.width * s.height for s in shapes)) + 1, 20)
        self.seen_bits = between(8, log2_above(rows) + 1, 20)
        self.canvas: list[int] = []
        self.seen: dict[int, int] = {}
        # a slot is [probability, zeros, ones, check]
        self.tables: list[dict[int, list[int]]] = [{} for _ in range(CONTEXTS)]
        self.slots: list[list[int]] = []
        first = [(((s & 15) * 5 + 2) * 4194303 // (((s >> 4) + (s & 15)) * 5 + 4)) << 10 for s in range(256)]
        self.maps = [first.copy() for _ in range(CONTEXTS)]
        self.weights: list[dict[int, list[int]]] = [{} for _ in range(SETS)]
        self.last_weights: dict[int, list[int]] = {}
        self.finals: list[dict[int, list[int]]] = [{}, {}]
        self.glyph = self.x = self.y = self.row = self.inked = self.prefix = 0
        self.lately, self.in_all = [0] * WINDOW, [0] * WINDOW
        self.alike: list[int] = [-1] * 4
        self.run = self.axis_row = self.axis_all = 0
        self.axis = -1

    def row_at(self, glyph: int, y: int) -> int:
        at = y - self.shapes[glyph].top
        return self.canvas[self.first[glyph] + at] if 0 <= at < self.shapes[glyph].height else 0

    def code_all(self, rows: list[int] | None) -> list[int]:
        """Code the rows, or read them; return them."""
        for glyph, shape in enumerate(self.shapes):
            self.glyph = glyph
            if shape.height:
                self._begin_glyph(shape)
            for _ in range(shape.height):
                wanted = rows[len(self.canvas)] >> shape.left if rows else 0
                self._begin_row()
                for x in range(shape.left, shape.left + shape.width):
                    self.x = x
                    bit = self._code_pixel(wanted >> 63 - x & 1)
                    self.row |= bit << 63 - x
                    for i, like in enumerate(self.like):
                        self.missed[i] += bit != like >> 63 - x & 1
                self._end_row()
        left = [shape.left for shape in self.shapes for _ in range(shape.height)]
        return [row << n & M64 for row, n in zip(self.canvas, left, strict=True)]

    def _begin_glyph(self, shape: Shape) -> None:
        self.prefix = scatter(scatter(shape.top, shape.width), shape.left)
        self.axis, self.run, self.y, self.inked = -1, shape.top, shape.top, 0
        for n in range(max(0, self.glyph - WINDOW), self.glyph):
            is_alike = (self.shapes[n].width, self.shapes[n].left) == (shape.width, shape.left)
            self.lately[n % WINDOW] = self.in_all[n % WINDOW] = 0 if is_alike else 64
        self._rank()

    def _rank(self) -> None:
        """Choose the glyphs of the window that differ least; of equal ones the latest."""
        window = range(self.glyph - 1, max(0, self.glyph - WINDOW) - 1, -1)
        best = sorted(window, key=lambda n: self.lately[n % WINDOW])[:2]
        whole = min(window, key=lambda n: self.in_all[n % WINDOW], default=-1)
        self.alike = [*[*best, -1, -1][:2], whole, self.glyph - 1]

    def _begin_row(self) -> None:
        self.row = 0
        self.up = [0, *(self.row_at(self.glyph, self.y - k) for k in range(1, UP + 1))]
        near = [[self.row_at(n, self.y + k) if n >= 0 else 0 for n in self.alike] for k in (-1, 0, 1)]
        self.above, self.below = near[0], near[2]
        self.known = [0] * 7
        mirrored = self.row_at(self.glyph, self.axis - self.y if self.axis >= 0 else self.run - 1)
        self.like = [*near[1], self._expect(BEGINNING, self.prefix), self._expect(BEHIND, self._last_rows()), mirrored]
        self.missed = [0] * 7
        shape = self.up[1] or self.like[BEST]
        self.inked |= self.up[1]
        self.axis_row = _axis_of(shape) if shape else self.axis_row
        self.axis_all = _axis_of(self.inked) if self.inked else self.axis_all

    def _last_rows(self) -> int:
        return scatter(scatter(scatter(7, self.up[1]), self.up[2]), self.up[3])

    def _seen_at(self, key: int) -> int:
        return (key * PHI & M64) >> 64 - self.seen_bits

    def _expect(self, way: int, key: int) -> int:
        """Return the row that followed the same rows, and keep how many of those above agree."""
        found, n = self.seen.get(self._seen_at(key), 0), 0
        above = self.y - self.shapes[self.glyph].top
        while n < min(15, above, found) and self.canvas[found - 1 - n] == self.canvas[-1 - n]:
            n += 1
        if not found or (way == BEGINNING and n < min(above, 15)):
            return 0
        self.known[way] = n + 1
        return self.canvas[found]

    def _end_row(self) -> None:
        self.seen[self._seen_at(self.prefix)] = self.seen[self._seen_at(self._last_rows())] = len(self.canvas)
        self.canvas.append(self.row)
        self.prefix = scatter(self.prefix, self.row)
        for n in range(max(0, self.glyph - WINDOW), self.glyph):
            off = 8 * (self.row ^ self.row_at(n, self.y)).bit_count()
            self.lately[n % WINDOW] += off - (self.lately[n % WINDOW] >> 2)
            self.in_all[n % WINDOW] += off
        self._rank()
        if self.axis >= 0 and self.row != self.row_at(self.glyph, self.axis - self.y):
            self.axis = -1
        if self.row != self.up[1]:
            if self.axis < 0 and self.row and self.row == self.row_at(self.glyph, self.run - 1):
                self.axis = self.y + self.run - 1  # the rows between were all alike: the axis lies in their middle
            self.run = self.y
        self.y += 1

    def _mirrored(self, axis: int) -> int:
        """Return 0 off the canvas, 1 not known yet, else 4 + 2 for the pixel mirrored + 8 for the one before it."""
        at = axis - self.x
        if not 0 <= at <= 63:
            return 0
        if at >= self.x:
            return 1
        return 4 | (self.row >> 63 - at & 1) << 1 | (self.row << 1 >> 63 - at & 1) << 3

    def _code_pixel(self, bit: int) -> int:
        sight = _Sight(self)
        inputs = self._look_up([*sight.own(), *sight.others(), *sight.places()])
        pick, final = sight.picks()
        weights = [
            rows.get(row) or rows.setdefault(row, [2000, 1000] * CONTEXTS + [0] * 4)
            for rows, row in zip(self.weights, pick, strict=True)
        ]
        mixed = [weighted(inputs, w) for w in weights] + [0] * 4
        last_weights = self.last_weights.setdefault(pick[3], [32768 // SETS] * SETS + [0] * 4)
        last = weighted(mixed, last_weights)
        at, rest = last + 2048 >> 7, last + 2048 & 127
        tables = [t.get(f) or t.setdefault(f, FIRST_FINAL.copy()) for t, f in zip(self.finals, final, strict=True)]
        refined = sum(t[at] * (128 - rest) + t[at + 1] * rest for t in tables) >> 7
        bit = self.coder.code(bit, between(16, 2 * SQUASH[last + 2048] + refined + 2 >> 2, 65520))
        for table in tables:
            approach(table, at + (rest >= 64), bit, 5)
        for w, m in zip(weights, mixed, strict=False):
            train(inputs, w, (bit << 16) - SQUASH[m + 2048] >> 1)
        train(mixed, last_weights, (bit << 16) - SQUASH[last + 2048] >> 3)
        for slot, map_ in zip(self.slots, self.maps, strict=True):
            _learn(slot, map_, bit)
        return bit

    def _look_up(self, contexts: list[int]) -> list[int]:
        self.slots, inputs = [], []
        for i, context in enumerate(contexts):
            value = (context + 1 + i) * SPREAD & M64
            value = (value ^ value >> 31) * PHI & M64
            at, check = value >> 64 - self.table_bits, value & 255
            slot = self.tables[i].setdefault(at, [32768, 0, 0, check])
            if slot[3] != check:
                slot[:] = 32768, 0, 0, check
            state = slot[1] << 4 | slot[2]
            inputs += [STRETCH[self.maps[i][state] >> 20], STRETCH[slot[0] >> 4]] if state else [0, 0]
            self.slots.append(slot)
        return [*inputs, 256, 0, 0, 0]


def _learn(slot: list[int], map_: list[int], bit: int) -> None:
    state = slot[1] << 4 | slot[2]
    slot[0] += ((65535 if bit else 0) - slot[0]) * RECIPROCAL[min(slot[1] + slot[2], SLOT_LIMIT)] >> 16
    count, p = map_[state] & 1023, map_[state] >> 10
    p += ((bit << 22) - p >> 3) * RECIPROCAL[count] >> 13
    map_[state] = p << 10 | min(count + 1, MAP_LIMIT)
    same, other = 1 + bit, 2 - bit
    slot[same] = min(slot[same] + 1, 15)
    if slot[other] > 2:
        slot[other] = (slot[other] + 1) // 2


class _Sight:
    """What one pixel sees, and the contexts that are made of it."""

    def __init__(self, g: _Glyphs) -> None:
        self.g, x = g, g.x
        self.left = g.row >> 64 - x & 255 if x else 0
        self.up = [_around(row, x) for row in g.up]
        self.above, self.below = [_around(row, x) for row in g.above], [_around(row, x) for row in g.below]
        self.like = [_around(row, x) for row in g.like]
        self.likely = sum(_pixel(nine) << i for i, nine in enumerate(self.like))
        self.missed = [min(n, 3) for n in g.missed]
        self.near = _part(self.up[1], 1, 1)
        self.mirror_row, self.mirror_all = g._mirrored(g.axis_row), g._mirrored(g.axis_all)

    def own(self) -> list[int]:
        """Return contexts of the glyph by itself."""
        g, left, up = self.g, self.left, self.up
        column = sum(_pixel(up[k]) << k for k in range(1, UP + 1))
        columns = sum(_part(up[k], 1, 1) << 3 * k for k in range(1, 6))
        return [
            left & 15 | _part(up[1], 2, 2) << 4 | _part(up[2], 1, 1) << 9,
            left & 15 | _part(up[1], 3, 3) << 4 | _part(up[2], 2, 2) << 11,
            left | up[1] << 8 | _part(up[2], 3, 3) << 17 | _part(up[3], 2, 2) << 24,
            left & 3 | self.near << 2 | g.x << 5 | g.y << 11,
            scatter(scatter(g.row, g.up[1]), g.x),
            scatter(scatter(scatter(g.row, g.up[1]), g.up[2]), g.x),
            scatter(scatter(g.row, g.y), g.x),
            scatter(scatter(scatter(g.prefix, g.row), g.x), 5),
            column << 2 | left & 3,
            columns << 1 | left & 1,
        ]

    def others(self) -> list[int]:
        """Return contexts of other glyphs and of rows seen before."""
        g, two, like, missed = self.g, self.left & 3, self.like, self.missed
        nine = _part(self.above[BEFORE], 1, 1) | _part(like[BEFORE], 1, 1) << 3 | _part(self.below[BEFORE], 1, 1) << 6
        best = _part(self.above[BEST], 1, 1) | _part(like[BEST], 2, 2) << 3 | _part(self.below[BEST], 1, 1) << 8
        beginning = _part(like[BEGINNING], 1, 1) | missed[BEGINNING] << 3 | min(g.known[BEGINNING], 7) << 5
        behind = _part(like[BEHIND], 1, 1) | missed[BEHIND] << 3 | min(g.known[BEHIND], 7) << 5
        counts = missed[BEST] << 7 | missed[BEGINNING] << 9 | missed[BEHIND] << 11 | missed[WHOLE] << 13
        return [
            nine | two << 9 | self.near << 11,
            best | (self.left & 7) << 11 | _part(self.up[1], 1, 2) << 14 | missed[BEST] << 18,
            self.likely | counts,
            beginning | two << 8 | _pixel(like[BEST]) << 10 | missed[BEST] << 11,
            behind | two << 8 | self.near << 10,
        ]

    def places(self) -> list[int]:
        """Return contexts of symmetry and of the place in the glyph."""
        g, two, near, like = self.g, self.left & 3, self.near, self.like
        shape, is_axis, missed = g.shapes[g.glyph], int(g.axis >= 0), self.missed[MIRRORED]
        x, y = g.x - shape.left, g.y - shape.top
        three = _part(like[MIRRORED], 1, 1)
        return [
            three | missed << 3 | is_axis << 5 | two << 6 | near << 8 | min(g.y - g.run, 7) << 11,
            self.mirror_row | three << 4 | two << 7 | near << 9,
            self.mirror_all | _pixel(like[MIRRORED]) << 4 | _pixel(like[BEFORE]) << 5 | two << 7 | near << 9
            | _pixel(like[BEST]) << 12,
            _part(like[BEFORE], 1, 1) | _part(like[MIRRORED], 2, 2) << 3 | (self.left & 7) << 8
            | _part(self.up[1], 2, 2) << 11 | min(missed, 2) << 16 | is_axis << 18,
            x | y << 6 | self.likely << 22,
            g.x | g.y << 6 | _pixel(like[BEFORE]) << 23 | _pixel(like[MIRRORED]) << 24 | (self.mirror_row & 7) << 25,
            shape.width - x | shape.height - y << 7 | two << 23 | near << 25 | (self.likely & 1) << 28,
        ]  # fmt: skip

    def picks(self) -> tuple[list[int], list[int]]:
        """Return which weights and which final estimations are used."""
        g, likely, one = self.g, self.likely, self.left & 1
        mirror, beginning, missed = likely >> MIRRORED & 1, likely >> BEGINNING & 1, self.missed
        off = min(g.lately[g.alike[BEST] % WINDOW] >> 4, 7) if g.alike[BEST] >= 0 else 7
        pick = [
            missed[BEST] | missed[BEGINNING] << 2 | min(g.known[BEGINNING], 3) << 4 | (likely & 1) << 6
            | beginning << 7 | (missed[SECOND] > 0) << 8,
            g.x | mirror << 6 | (missed[MIRRORED] > 0) << 7 | (g.axis >= 0) << 8,
            min(g.y - g.shapes[g.glyph].top, 63) | off << 6,
            one | self.near << 1 | (self.mirror_row & 6) << 3 | mirror << 6 | (likely & 1) << 7,
        ]  # fmt: skip
        template = self.left & 15 | _part(self.up[1], 2, 2) << 4 | _part(self.up[2], 1, 1) << 9
        guesses = likely & 3 | beginning << 2 | (likely >> BEHIND & 1) << 3 | mirror << 4 | (likely >> BEFORE & 1) << 5
        return pick, [template, guesses | (self.mirror_row & 6) << 5 | (missed[BEST] > 0) << 8 | one << 9]


def _shapes(raw: bytes) -> list[Shape]:
    shapes = [Shape(*numbers) for numbers in struct.iter_unpack("=4H", raw)]
    if any(s.left + s.width > 64 or (s.height and not s.width) for s in shapes):
        raise ValueError("a glyph lies outside a canvas of 64 columns")
    return shapes


def glyphs_encode(shapes: bytes, rows: bytes) -> bytes:
    """Return the payload of glyphs.

    Args:
        shapes: per glyph width, height, left, top as 16-bit numbers of this machine [pixels].
        rows: per row of all glyphs a 64-bit number of this machine, the leftmost pixel on top.
    """
    boxes = _shapes(shapes)
    numbers = [number for (number,) in struct.iter_unpack("=Q", rows)]
    if len(numbers) != sum(box.height for box in boxes):
        raise ValueError("the rows are not those of the glyphs")
    coder = Encoder()
    _Glyphs(boxes, coder).code_all(numbers)
    return coder.finish()


def glyphs_decode(data: bytes, shapes: bytes) -> bytes:
    """Return the rows of a payload; any payload gives some."""
    boxes = _shapes(shapes)
    rows = _Glyphs(boxes, Decoder(data)).code_all(None)
    return struct.pack(f"={len(rows)}Q", *rows)
