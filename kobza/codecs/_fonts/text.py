"""Fonts as text: BDF (Adobe's Glyph Bitmap Distribution Format 2.2), and the hex files of GNU Unifont.

The rest of a BDF file: a byte, 1 when its digits are small letters, then the file without the digits of every glyph
whose lines are as many and as long as its box says; characters are written as differences from the one before, and
names that spell the character without it. The rest of a hex file: how many lines, a byte per line (digits of
the character beyond 4 times 16 + columns / 8), the characters as differences from the one that would follow.
"""

from __future__ import annotations

import re

import numpy as np

from kobza.codecs._fonts.grids import LARGEST, Grid
from kobza.codecs.container.fields import Cursor, varint

BEGIN, END = b"STARTFONT ", b"\nENDFONT"
# subtle: lines between box and bitmap are bounded, or boxes without a bitmap would cost their square
BITMAP = re.compile(
    rb"\nBBX (\d{1,5}) (\d{1,5}) (-?\d{1,5}) (-?\d{1,5})\n((?:[A-Z_]+ [^\n]*\n){0,9}?)"
    rb"BITMAP\n((?:[0-9A-Fa-f]+\n)*)ENDCHAR\n"
)
HEX = re.compile(rb"(?:[0-9A-F]{4,7}:(?:[0-9A-F]{32}){1,8}\n)+")
HEX_ROWS = 16
CHARACTER = re.compile(rb"STARTCHAR ([^\n]*)\nENCODING ([^\n]*)\n")
SPELLED = {b"\1": "%04X", b"\2": "%06X", b"\3": "%d"}  # what stands for a character in its name
Box = tuple[int, int, int, int]


def take(raw: bytes, at: int) -> tuple[int, bytes, bytes]:
    """Return the end of the BDF font that begins at `at`, its rest and its bits."""
    end = raw.find(END, at) + len(END)
    if end < len(END) or not raw.startswith(BEGIN, at):
        raise ValueError("no BDF font")
    end += raw[end : end + 1] == b"\n"
    text = raw[at:end]
    is_lower = bool(re.search(rb"BITMAP\n[0-9\n]*[a-f]", text))
    kept, bits, done = [bytes((is_lower,))], [], 0
    for glyph in BITMAP.finditer(text):
        width, height, *_ = _box(glyph)
        digits = glyph.group(6)
        if digits and len(digits) == height * (_stride(width) * 2 + 1):
            lines = digits.split(b"\n")
            if {len(line) for line in lines[:-1]} == {2 * _stride(width)}:
                kept.append(text[done : glyph.start(6)])
                bits.append(bytes.fromhex(digits.decode("ascii")))
                done = glyph.end(6)
    return end, _characters(b"".join([*kept, text[done:]]), is_back=False), b"".join(bits)


def _characters(text: bytes, *, is_back: bool) -> bytes:
    """Write every character as its difference from the one before, or back; names are found in `SPELLED` ways."""
    last = -1

    def change(found: re.Match[bytes]) -> bytes:
        nonlocal last
        name, number = found.groups()
        if not (number[:1] == b"+" if is_back else number.isdigit()):
            return found.group()
        code = int(number) + (last if is_back else 0)
        if is_back and name[-1:] in SPELLED:
            name = name[:-1] + (SPELLED[name[-1:]] % code).encode("ascii")
        elif not is_back:
            ways = [(mark, (way % code).encode("ascii")) for mark, way in SPELLED.items()]
            name = next((name[: -len(way)] + mark for mark, way in ways if name.endswith(way)), name)
        said = b"%d" % code if is_back else b"%+d" % (code - last)
        last = code
        return found.group() if said[:1] == b"-" else b"STARTCHAR %b\nENCODING %b\n" % (name, said)

    return CHARACTER.sub(change, text)


def _stride(width: int) -> int:
    return (width + 7) // 8


def _box(glyph: re.Match[bytes]) -> Box:
    width, height, x, y = (int(glyph.group(k)) for k in range(1, 5))
    if max(width, height, abs(x), abs(y)) > LARGEST:
        raise ValueError("a glyph is too large")
    return width, height, x, -y - height


def _holes(rest: bytes) -> list[tuple[int, Box]]:
    """Return where digits were taken out, and the boxes of their glyphs."""
    found = [(glyph.start(6), _box(glyph)) for glyph in BITMAP.finditer(rest) if not glyph.group(6)]
    return [(at, box) for at, box in found if box[0] and box[1]]


def grid(rest: bytes) -> Grid:
    """Return where the glyphs of a BDF font lie."""
    return _stacked([box for _, box in _holes(rest)])


def _stacked(boxes: list[Box]) -> Grid:
    """Return the grid of glyphs whose rows of whole bytes follow each other."""
    table = np.array(boxes, np.int64).reshape(-1, 4)
    strides = (table[:, 0] + 7) // 8
    ends = np.cumsum(strides * table[:, 1])
    size = int(ends[-1]) if len(ends) else 0
    return Grid(table, ends - strides * table[:, 1], strides, size).check()


def give(rest: bytes, bits: bytes) -> bytes:
    """Return the BDF file."""
    rest, parts, done, at = _characters(rest, is_back=True), [], 1, 0
    for place, (width, height, *_) in _holes(rest):
        stride = _stride(width)
        digits = bits[at : at + stride * height].hex("\n", -stride) + "\n"
        parts += [rest[done:place], (digits if rest[0] else digits.upper()).encode("ascii")]
        done, at = place, at + stride * height
    return b"".join([*parts, rest[done:]])


def take_hex(raw: bytes, at: int) -> tuple[int, bytes, bytes]:
    """Return the end of the hex lines that begin at `at`, their rest and their bits."""
    found = HEX.match(raw, at)
    if not found or (at and raw[at - 1] != ord("\n")):
        raise ValueError("no hex lines")
    lines = [line.split(b":") for line in found.group().splitlines()]
    kinds, steps, expected = bytearray(), [], 0
    for code, digits in lines:
        kinds.append((len(code) - 4) << 4 | len(digits) // 32)
        step = int(code, 16) - expected
        steps.append(varint(2 * step if step >= 0 else -2 * step - 1))
        expected += step + 1
    bits = bytes.fromhex(b"".join(digits for _, digits in lines).decode("ascii"))
    return found.end(), varint(len(lines)) + bytes(kinds) + b"".join(steps), bits


def grid_hex(rest: bytes) -> Grid:
    """Return where the glyphs of hex lines lie."""
    cursor = Cursor(rest, "a font")
    kinds = cursor.take(cursor.varint())
    return _stacked([(8 * (kind & 15), HEX_ROWS, 0, 0) for kind in kinds])


def give_hex(rest: bytes, bits: bytes) -> bytes:
    """Return the hex lines."""
    cursor = Cursor(rest, "a font")
    kinds = cursor.take(cursor.varint())
    lines, expected, at = [], 0, 0
    for kind in kinds:
        step, size = cursor.varint(), HEX_ROWS * (kind & 15)
        code = expected + (-(step + 1) // 2 if step & 1 else step // 2)
        lines.append(f"{code:0{4 + (kind >> 4)}X}:{bits[at : at + size].hex().upper()}\n")
        expected, at = code + 1, at + size
    return "".join(lines).encode("ascii")
