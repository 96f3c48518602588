"""Bitmap fonts without loss: PSF 1 and 2, PCF, BDF and Unifont's hex, glyph after glyph, in integers only.

A file is taken apart into the bits of its glyphs and the rest, see `_fonts`; the bits go through the network of
`native.plain_glyphs`, which is their specification, the rest through `cm`. What is no font, or none that is known here
to the last byte, goes through `cm` as it stands. Source: Howard et al. (1998), doi:10.1109/76.735380.

A block's payload: 0, then all of it by `cm`; or 1, then the text, then the glyphs. The text is stored (0) or by `cm`
(1): that byte, its length, the length of its payload, the payload. It tells how many pieces there are, for each its
kind (0 plain, or of `FORMATS`) times 4 + 1 if rows reach to their padding + 2 if the bits that no glyph has follow the
rest, and the length of its rest; then all rests. The glyphs of all pieces are of the way `NETWORK`, or `PACKED`: eight
pixels to a byte by `cm`. Numbers are varints.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from kobza.codecs import base, native
from kobza.codecs._fonts import grids, pcf, psf, text
from kobza.codecs._fonts import sheet as sheets
from kobza.codecs._fonts.grids import MOST_GLYPHS, Grid, Rows
from kobza.core.errors import BadValue

BLOCK_LOG2 = 24
WHOLE, APART = 0, 1
STORED, MIXED = 0, 1
NETWORK, PACKED = 0, 1
MOST_ROWS, MOST_PIXELS = 1 << 21, 1 << 25  # of a block; what has more goes through `cm`
MOST_FONTS = 1 << 12
MOST_TRIES = 200  # places that look like a font and are none, until the search is given up
decompress = base.unpack


class Format(NamedTuple):
    """How a kind of font is taken apart and put together; see `_fonts`."""

    take: Callable[[bytes, int], tuple[int, bytes, bytes]]
    grid: Callable[[bytes], Grid]
    give: Callable[[bytes, bytes], bytes]


FORMATS = {
    1: Format(psf.take, psf.grid, psf.give),
    2: Format(pcf.take, pcf.grid, pcf.give),
    3: Format(text.take, text.grid, text.give),
    4: Format(text.take_hex, text.grid_hex, text.give_hex),
}
PLAIN = 0
BEGIN = re.compile(
    rb"(\x36\x04[\x00-\x07][^\x00]|\x72\xb5\x4a\x86)|(\x01fcp)|(STARTFONT )|((?:(?<=\n)|\A)[0-9A-F]{4,7}:[0-9A-F]{32})"
)


class Piece(NamedTuple):
    """A stretch of a block: a font taken apart, or plain bytes, which are all `rest`."""

    kind: int
    rest: bytes
    grid: Grid | None = None
    rows: Rows = np.zeros(0, np.uint64)
    is_full: bool = False
    residue: bytes = b""  # what to add to the glyphs' bits, nothing for none


def compress(
    data: bytes, *, block_log2: int = BLOCK_LOG2, grid: str = "", threshold: int = 128, gunzip: bool = False
) -> bytes:
    """Return `data` as a .kbz file; fonts in it shrink most, about 0.1 MB/s; unpacking takes as long.

    Args:
        data: any bytes; best a font, or several one after the other, not compressed before.
        block_log2: blocks of 2^block_log2 bytes; a font cut by one is none [log2 of bytes, 10 .. 24].
        grid: nothing: `data` as it is. Else `data` is a picture of glyphs and becomes a PSF 2 font first, see
            `prepared`: cells of WIDTHxHEIGHT pixels such as 8x16, or auto.
        threshold: grey from which a pixel of a picture is light [grey, 1 .. 255].
        gunzip: `data` is a .gz, and the font in it is packed: no zlib but the one that wrote it makes it again.

    Returns:
        The file; unpacked, it gives `data`, or what `data` was made into.

    Raises:
        OutOfRange: the block size or the threshold is not one.
        BadValue: `data` is no picture, or not one of that grid, or no .gz.
    """
    base.check_range("block_log2", block_log2, 10, BLOCK_LOG2)
    made, _ = prepared(data, grid=grid, threshold=threshold, gunzip=gunzip)
    return base.pack(made, coder(), block_log2=base.fitting_block(len(made), block_log2))


def prepared(data: bytes, *, grid: str = "auto", threshold: int = 128, gunzip: bool = False) -> tuple[bytes, str]:
    """Return the bytes that are packed for `data`, and what they are, nothing when they are `data` itself.

    Args:
        data: a picture that Pillow reads, a .gz, or with neither option anything.
        grid: WIDTHxHEIGHT in pixels, auto for the one under which the glyphs pack smallest, or nothing. The cells, row
            by row, become a PSF 2 font; the rarer of light and dark is ink.
        threshold: grey from which a pixel is light [grey, 1 .. 255].
        gunzip: return the file in a .gz.

    Raises:
        BadValue: it is no picture or the cells do not fill it; it is no .gz, or one of more than 16 MiB.
    """
    base.check_range("threshold", threshold, 1, 255)
    if gunzip:
        inner = _gunzipped(data)
        return inner, f"the {len(inner)} bytes in the .gz"
    if not grid:
        return data, ""
    ink = sheets.ink_of(sheets.grey(data), threshold)
    width, height = sheets.parse(grid) or sheets.find_grid(ink)
    made = sheets.cut(ink, (width, height))
    return made, f"grid {width}x{height}, a PSF font of {len(made)} bytes"


def _gunzipped(data: bytes) -> bytes:
    expander = zlib.decompressobj(31)
    try:
        inner = expander.decompress(data, (1 << BLOCK_LOG2) + 1)
    except zlib.error as error:
        raise BadValue(f"the file is no .gz: {error}.") from error
    if len(inner) > 1 << BLOCK_LOG2 or not expander.eof or expander.unused_data:
        raise BadValue(f"the .gz is not one whole file of at most {1 << BLOCK_LOG2} bytes.")
    return inner


def coder(data: bytes = b"", *, grid: str = "", threshold: int = 128, gunzip: bool = False) -> base.Coder:
    """Return the coder for a `base.Writer`; `data` is not looked at.

    Raises:
        BadValue: something is to be made of the file first; that takes `compress`, which sees the whole of it.
    """
    if grid or gunzip:
        raise BadValue("a sheet of glyphs or a .gz is packed by itself, not in an archive or beside another codec.")
    return base.Coder("font", _encode)


def decoder(parameters: Mapping[str, bytes], supply: Mapping[str, Any]) -> base.Decode:
    """Return the block decoder."""

    def decode(payload: bytes, size: int) -> bytes:
        try:
            return _decode(payload, size)
        except (struct.error, OverflowError) as error:
            raise ValueError(str(error)) from error

    return decode


def memory(size: int, parameters: Mapping[str, bytes]) -> int:
    """Return the working memory [bytes] to decode a block of `size` bytes."""
    rows, glyphs = min(size, MOST_ROWS), min(size // 8, MOST_GLYPHS)
    tables = 22 * 4 << min(20, max(10, (8 * size).bit_length() + 1))
    numbers = 48 * rows + 256 * glyphs + 64 * min(size, psf.MOST_VALUES)
    return max(base.memory("cm", size, {}), numbers, tables + 48 * rows + (2 << 20)) + 12 * size


def pieces(raw: bytes) -> list[Piece]:
    """Return the fonts in `raw`, and what lies between them."""
    found, done = [], 0
    for begin, end, piece in _fonts(raw):
        found += [Piece(PLAIN, raw[done:begin])] if begin > done else []
        found.append(piece)
        done = end
    return found + ([Piece(PLAIN, raw[done:])] if done < len(raw) else [])


def _fonts(raw: bytes) -> Iterator[tuple[int, int, Piece]]:
    at = tries = fonts = glyphs = rows = pixels = 0
    while tries < MOST_TRIES and fonts < MOST_FONTS and (hit := BEGIN.search(raw, at)):
        try:
            end, piece = _font(raw, hit.start(), hit.lastindex or 0)
            assert piece.grid is not None
            glyphs, rows = glyphs + len(piece.grid.boxes), rows + len(piece.rows)
            pixels += piece.grid.pixels
            _check_most(glyphs, rows, pixels)
            yield hit.start(), end, piece
            at, fonts = end, fonts + 1
        except (ValueError, LookupError, ArithmeticError, EOFError, struct.error, base.Corrupt):
            at, tries = hit.start() + 1, tries + 1


def _check_most(glyphs: int, rows: int, pixels: int) -> None:
    if glyphs > MOST_GLYPHS or rows > MOST_ROWS or pixels > MOST_PIXELS:
        raise ValueError(f"a block has {glyphs} glyphs of {rows} rows and {pixels} pixels: too many")


def _font(raw: bytes, at: int, kind: int) -> tuple[int, Piece]:
    """Return the end of the font that begins at `at`, and the font."""
    form = FORMATS[kind]
    end, rest, bits = form.take(raw, at)
    if form.give(rest, bits) != raw[at:end]:
        raise ValueError("a font is spelled in a way of its own")
    grid = form.grid(rest)
    if grid.size != len(bits):
        raise ValueError("a font holds other bits than it says")
    narrow, wide = _rest_of(bits, grid), grid.full()
    if not any(narrow):
        return end, Piece(kind, rest, grid, grids.rows_of(bits, grid))
    residue = _rest_of(bits, wide)
    return end, Piece(kind, rest, wide, grids.rows_of(bits, wide), True, residue if any(residue) else b"")


def _rest_of(bits: bytes, grid: Grid) -> bytes:
    made = grids.bits_of(grids.rows_of(bits, grid), grid)
    return _added(made, bits)


def _added(a: bytes, b: bytes) -> bytes:
    return (np.frombuffer(a, np.uint8) ^ np.frombuffer(b, np.uint8)).tobytes()


def _encode(raw: bytes) -> bytes:
    whole = bytes((WHOLE,)) + base.stage("cm")(raw)
    found = pieces(raw)
    fonts = [piece for piece in found if piece.grid]
    if not fonts:
        return whole
    head = [len(found)]
    for piece in found:
        head += [4 * piece.kind + piece.is_full + 2 * bool(piece.residue), len(piece.rest)]
    said = b"".join([*map(base.varint, head), *(piece.rest + piece.residue for piece in found)])
    if len(said) > _longest_text(len(raw)):
        return whole
    return min(bytes((APART,)) + _mixed(said) + _glyphs(fonts), whole, key=len)


def _longest_text(size: int) -> int:
    """Return the bytes of text that a block of `size` bytes may have: no more is believed."""
    return 2 * size + 64


def _mixed(raw: bytes) -> bytes:
    packed = base.stage("cm")(raw)
    kind, payload = (MIXED, packed) if len(packed) < len(raw) else (STORED, raw)
    return bytes((kind,)) + base.varint(len(raw)) + base.varint(len(payload)) + payload


def _glyphs(fonts: list[Piece]) -> bytes:
    shapes = b"".join(piece.grid.shapes() for piece in fonts if piece.grid)
    rows = np.concatenate([piece.rows for piece in fonts])
    packed = b"".join(grids.packed_rows(piece.rows, piece.grid) for piece in fonts if piece.grid)
    ways = {NETWORK: native.glyphs_encode(shapes, rows.tobytes()), PACKED: base.stage("cm")(packed)}
    way = min(ways, key=lambda way: len(ways[way]))
    return bytes((way,)) + ways[way]


def _decode(payload: bytes, size: int) -> bytes:
    cursor = base.Cursor(payload, "a block")
    if cursor.byte() == WHOLE:
        return base.decoder("cm", 1, {}, {})(payload[1:], size)
    text_ = base.Cursor(_unmixed(cursor, size), "a block")
    count = text_.varint()
    if count > 2 * MOST_FONTS + 1:
        raise ValueError(f"a block has no {count} pieces")
    kinds = [(text_.varint(), text_.varint()) for _ in range(count)]
    found, left = [], size
    for kind, length in kinds:
        piece = _read_piece(kind, text_, length)
        left -= length if piece.grid is None else piece.grid.size
        if left < 0:
            raise ValueError(f"the pieces hold more than {size} bytes")
        found.append(piece)
    fonts = [piece.grid for piece in found if piece.grid]
    _check_most(
        sum(len(g.boxes) for g in fonts), sum(int(g.heights.sum()) for g in fonts), sum(g.pixels for g in fonts)
    )
    rows, at, parts = _read_glyphs(payload[cursor.at :], fonts), 0, []
    for piece in found:
        count = int(piece.grid.heights.sum()) if piece.grid else 0
        parts.append(_given(piece, rows[at : at + count]))
        at += count
    if len(raw := b"".join(parts)) > size:
        raise ValueError(f"the pieces hold more than {size} bytes")
    return raw


def _unmixed(cursor: base.Cursor, size: int) -> bytes:
    kind, length, packed = cursor.byte(), cursor.varint(), cursor.take(cursor.varint())
    if length > _longest_text(size):
        raise ValueError(f"a block of {size} bytes needs no text of {length}")
    return packed if kind == STORED else base.decoder("cm", 1, {}, {})(packed, length)


def _read_piece(kind: int, cursor: base.Cursor, length: int) -> Piece:
    rest = cursor.take(length)
    if not kind >> 2:
        return Piece(PLAIN, rest)
    if kind >> 2 not in FORMATS:
        raise ValueError(f"a piece is of kind {kind}")
    grid = FORMATS[kind >> 2].grid(rest)
    grid = grid.full() if kind & 1 else grid
    return Piece(kind >> 2, rest, grid, residue=cursor.take(grid.size) if kind & 2 else b"")


def _read_glyphs(payload: bytes, fonts: list[Grid]) -> Rows:
    way, payload = payload[0], payload[1:]
    if way == PACKED:
        sizes = [-(-grid.pixels // 8) for grid in fonts]
        packed, at = base.decoder("cm", 1, {}, {})(payload, sum(sizes)), 0
        rows = []
        for grid, size in zip(fonts, sizes, strict=True):
            rows.append(grids.unpacked_rows(packed[at : at + size], grid))
            at += size
        return np.concatenate(rows)
    # a pixel costs 1/2840 bit at least, so this many need more payload than that
    if len(payload) < sum(grid.pixels for grid in fonts) // 23000:
        raise ValueError(f"{len(payload)} bytes cannot hold that many glyphs")
    shapes = b"".join(grid.shapes() for grid in fonts)
    return np.frombuffer(native.glyphs_decode(payload, shapes), np.uint64)


def _given(piece: Piece, rows: Rows) -> bytes:
    if piece.grid is None:
        return piece.rest
    bits = grids.bits_of(rows, piece.grid)
    return FORMATS[piece.kind].give(piece.rest, _added(bits, piece.residue) if piece.residue else bits)
