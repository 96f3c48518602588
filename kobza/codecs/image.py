"""Pictures without loss: raw samples of PNM, PAM, BMP and NPY files by prediction and context mixing, integers only.

See `native.plain_picture`, which is the specification. Source: Wu & Memon (1997), CALIC, doi:10.1109/26.585919, and
Mahoney's paq8 for mixing the contexts. What is no raw sample (headers, other
files, PNG, whose samples lie behind deflate) goes through `cm` or stays as it is. A PNG's own bytes cannot be made
again by every zlib: give its pixels to `pack_pixels`.

A block's payload: pieces one after the other, each a kind byte, the length of its payload as a varint, the payload.
Kind 0, stored bytes; kind 1, their number as a varint, then `cm`; kind 2, a raster: width, rows, channels, bytes per
sample + 2 if little-endian, padding, bits per sample, mode (all varints), the table of samples, `picture_encode`.
The table is a kind (0 none, 1 the values in use, per channel, 2 a palette, most frequent color first), then its number
of entries (of each channel) as a varint and the entries, 2 bytes a sample, packed by zlib with their length before.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kobza.codecs import _rasters, base, native
from kobza.core.errors import BadValue

BLOCK_LOG2 = 24
PHOTO, GRAPHICS, INDEXED = 0, 1, 2
STORED, MIXED, RASTER = 0, 1, 2
FLAT = 0.15  # share of pixels equal to the left one from which the modes for graphics are tried too
MOST_COLORS = 256
Samples = NDArray[np.uint16]
decompress = base.unpack


def compress(data: bytes, *, block_log2: int = BLOCK_LOG2) -> bytes:
    """Return `data` as a .kbz file; raw pictures in it shrink most, about 0.7 MB/s; unpacking takes as long.

    Args:
        data: any bytes; best a PNM, PAM, uncompressed BMP or NPY file.
        block_log2: blocks of 2^block_log2 bytes; a picture cut by one goes on in the next [log2 of bytes, 10 .. 24].

    Returns:
        The file.

    Raises:
        OutOfRange: the block size is not one.
    """
    base.check_range("block_log2", block_log2, 10, BLOCK_LOG2)
    return base.pack(data, coder(), block_log2=base.fitting_block(len(data), block_log2))


def pack_pixels(pixels: NDArray[Any]) -> bytes:
    """Return an array of pixels as a .kbz file.

    Args:
        pixels: (height, width) or (height, width, channels) of uint8 or uint16, 1 to 4 channels.

    Returns:
        The file; it holds the array as NPY.

    Raises:
        BadValue: the array has another type or shape.
    """
    if pixels.dtype not in (np.uint8, np.uint16) or pixels.ndim not in (2, 3):
        raise BadValue(f"pixels are {pixels.dtype} {pixels.shape}; uint8 or uint16 with 2 or 3 axes are needed.")
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(pixels), allow_pickle=False)
    return compress(file.getvalue())


def unpack_pixels(blob: bytes, *, limits: base.Limits | None = None) -> NDArray[Any]:
    """Return the array of `pack_pixels`.

    Raises:
        Corrupt, Truncated, LimitExceeded: see `base.unpack`.
        BadValue: the file holds something else.
    """
    try:
        array: NDArray[Any] = np.load(io.BytesIO(base.unpack(blob, limits=limits)), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise BadValue(f"the file holds no array of pixels: {error}.") from error
    return array


def coder(data: bytes = b"") -> base.Coder:
    """Return the coder for a `base.Writer`; `data` is not looked at."""
    return base.Coder("image", _Encoder().encode)


class _Encoder:
    """Blocks in order: the rows of a picture that a block cut off go on in the next."""

    def __init__(self) -> None:
        self._open: tuple[_rasters.Raster, int, int] | None = None  # raster, bytes to its next row, rows left

    def encode(self, raw: bytes) -> bytes:
        pieces, at = [], 0
        for raster, begin, rows in self._rasters(raw):
            values = None
            if begin >= at and rows:
                values = _rasters.samples(raw[begin : begin + rows * raster.stride], raster)
            if values is not None:
                pieces += [_plain(raw[at:begin]), _raster(values, raster)]
                at = begin + rows * raster.stride
        return b"".join([*pieces, _plain(raw[at:])])

    def _rasters(self, raw: bytes) -> list[tuple[_rasters.Raster, int, int]]:
        places = [(raster, raster.at, raster.height) for raster in _rasters.find(raw) if raster.at <= len(raw)]
        if self._open:
            places.insert(0, self._open)
        found, self._open, busy = [], None, 0
        for raster, begin, height in places:
            if begin < busy or begin > len(raw):
                continue
            rows = min(height, (len(raw) - begin) // raster.stride)
            found.append((raster, begin, rows))
            busy = begin + rows * raster.stride
            if rows < height:
                left = raster.stride - (len(raw) - busy)
                self._open = (raster, left, height - rows - 1)
                busy = len(raw)
        return found


def decoder(parameters: Mapping[str, bytes], supply: Mapping[str, Any]) -> base.Decode:
    """Return the block decoder."""

    def decode(payload: bytes, size: int) -> bytes:
        cursor, parts, left = base.Cursor(payload, "a block"), [], size
        while cursor.at < len(payload):
            kind = cursor.byte()
            piece = cursor.take(cursor.varint())
            if kind not in (STORED, MIXED, RASTER):
                raise ValueError(f"a piece is of kind {kind}")
            part = piece if kind == STORED else (_read_mixed if kind == MIXED else _read_raster)(piece, left)
            left -= len(part)
            if left < 0:
                raise ValueError(f"the pieces hold more than {size} bytes")
            parts.append(part)
        return b"".join(parts)

    return decode


def memory(size: int, parameters: Mapping[str, bytes]) -> int:
    """Return the working memory [bytes] to decode a block of `size` bytes."""
    lines, rows = 64 << min(19, max(8, size.bit_length() + 2)), 100 * min(size, _rasters.WIDEST)
    # 18 MiB: the colors remembered, and weights
    return max(lines + rows + (18 << 20), base.memory("cm", size, {})) + 12 * size


def _piece(kind: int, payload: bytes) -> bytes:
    return bytes((kind,)) + base.varint(len(payload)) + payload


def _plain(raw: bytes) -> bytes:
    if not raw:
        return b""
    mixed = base.varint(len(raw)) + base.stage("cm")(raw)
    return _piece(MIXED, mixed) if len(mixed) < len(raw) else _piece(STORED, raw)


def _read_mixed(piece: bytes, most: int) -> bytes:
    cursor = base.Cursor(piece, "a block")
    size = cursor.varint()
    if size > most:
        raise ValueError(f"a piece holds {size} bytes where {most} are left")
    return base.decoder("cm", 1, {}, {})(piece[cursor.at :], size)


def _raster(values: Samples, raster: _rasters.Raster) -> bytes:
    """Return the shortest of the ways to code whole rows that are worth a try."""
    rows, width, channels = values.shape
    head = [width, rows, channels, raster.size + 2 * raster.is_little, raster.padding]
    made = [
        b"".join(map(base.varint, [*head, depth, mode])) + table + _coded(inner, depth, mode)
        for mode, table, inner in _ways(values)
        for depth in [max(1, int(inner.max()).bit_length())]
    ]
    return _piece(RASTER, min(made, key=len))


def _coded(values: Samples, depth: int, mode: int) -> bytes:
    rows, width, channels = values.shape
    raw = values.astype(">u2" if depth > 8 else "u1").tobytes()
    return bytes(native.picture_encode(raw, width, rows, channels, depth, mode))


def _ways(values: Samples) -> list[tuple[int, bytes, Samples]]:
    """Return modes worth a try, each with its table and the samples to code."""
    ways = [(PHOTO, b"\0", values)]
    used = [np.unique(values[:, :, c]) for c in range(values.shape[2])]
    if any(len(u) < 0.85 * (int(u[-1]) + 1) for u in used):
        ranks = [np.searchsorted(u, values[:, :, c]) for c, u in enumerate(used)]
        table = b"\1" + b"".join(base.varint(len(u)) + _deflated(np.diff(u, prepend=0)) for u in used)
        ways.append((PHOTO, table, np.stack(ranks, 2).astype(np.uint16)))
    flat = (values[:, 1:] == values[:, :-1]).all(2).mean() if values.shape[1] > 1 else 1.0
    if flat >= FLAT:
        ways.append((GRAPHICS, b"\0", values))
        colors, inverse, counts = np.unique(_keys(values), return_inverse=True, return_counts=True)
        if len(colors) <= MOST_COLORS:
            order = np.argsort(-counts, kind="stable")
            palette = np.stack([colors[order] >> 16 * c & 65535 for c in range(values.shape[2])], 1)
            numbers = np.argsort(order)[inverse.reshape(-1)].reshape(*values.shape[:2], 1)
            ways.append((INDEXED, b"\2" + base.varint(len(colors)) + _deflated(palette), numbers.astype(np.uint16)))
    return ways


def _keys(values: Samples) -> NDArray[np.uint64]:
    keys = np.zeros(values.shape[:2], np.uint64)
    for c in range(values.shape[2]):
        keys |= values[:, :, c].astype(np.uint64) << np.uint64(16 * c)
    return keys.reshape(-1)


def _deflated(numbers: NDArray[Any]) -> bytes:
    packed = zlib.compress(numbers.astype(">u2").tobytes(), 9)
    return base.varint(len(packed)) + packed


def _inflated(cursor: base.Cursor, count: int) -> Samples:
    if count > 65536 * 4:
        raise ValueError(f"a table of {count} numbers")
    try:
        raw = base.inflate(zlib.decompressobj(), cursor.take(cursor.varint()), 2 * count)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    return np.frombuffer(raw, ">u2").astype(np.uint16)


def _read_raster(piece: bytes, most: int) -> bytes:
    cursor = base.Cursor(piece, "a block")
    width, rows, channels, kind, padding, depth, mode = (cursor.varint() for _ in range(7))
    raster = _rasters.Raster(0, width, rows, channels, kind & 1 or 2, kind > 2, padding)
    if not raster.is_sound() or kind not in (1, 2, 4) or raster.stride * rows > most or padding > 3 or depth > 16:
        raise ValueError(f"a picture of {width} x {rows} x {channels} does not fit in {most} bytes")
    tables = _read_tables(cursor, channels)
    inner = 1 if len(tables) == 1 and tables[0].ndim == 2 else channels
    payload = piece[cursor.at :]
    # a pixel costs 1/2840 bit at least, so a picture of this size needs more payload than that
    if len(payload) < width * rows // 23000:
        raise ValueError(f"{len(payload)} bytes cannot hold {width} x {rows} pixels")
    raw = native.picture_decode(payload, width, rows, inner, depth, mode)
    values = np.frombuffer(raw, ">u2" if depth > 8 else "u1").reshape(rows, width, inner).astype(np.uint16)
    return _rasters.rows_of(_through(values, tables), raster)


def _read_tables(cursor: base.Cursor, channels: int) -> list[Samples]:
    """Return nothing, one column of values per channel, or one palette (colors, channels)."""
    kind = cursor.byte()
    if kind == 1:
        return [np.cumsum(_inflated(cursor, cursor.varint()), dtype=np.uint16) for _ in range(channels)]
    if kind == 2:
        return [_inflated(cursor, cursor.varint() * channels).reshape(-1, channels)]
    if kind:
        raise ValueError(f"a table of kind {kind}")
    return []


def _through(values: Samples, tables: list[Samples]) -> Samples:
    if not tables:
        return values
    single = tables[0].ndim == 2
    for c, table in enumerate(tables):
        if values.size and int(values[:, :, c].max()) >= len(table):
            raise ValueError(f"a sample lies outside its table of {len(table)}")
    if single:
        return tables[0][values[:, :, 0]]
    return np.stack([table[values[:, :, c]] for c, table in enumerate(tables)], 2)
