"""Where raw samples lie in a file: PNM (P5, P6), PAM, BMP without compression, NPY.

Sources: netpbm.sourceforge.net/doc (pgm, ppm, pam); Microsoft BITMAPINFOHEADER; the NPY format of NumPy (NEP 1).
"""

from __future__ import annotations

import ast
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WIDEST = 1 << 17  # samples in a row: bounds the memory of a decoder
GAP = rb"(?:\s|#[^\n]*\n)+"
PNM = re.compile(rb"P([56])" + GAP + rb"(\d{1,7})" + GAP + rb"(\d{1,7})" + GAP + rb"(\d{1,5})\s")
PAM = re.compile(rb"P7\n((?:[^\n]{0,99}\n){1,20}?)ENDHDR\n")
BMP = re.compile(rb"BM[\s\S]{12}[\s\S]{40}")
NPY = re.compile(rb"\x93NUMPY\x01\x00[\s\S]{2}(\{[^\n]{1,400}\}) *\n")


@dataclass(frozen=True)
class Raster:
    """Rows of interleaved samples.

    Args:
        at: offset of the first row [bytes].
        width, height: size [pixels].
        channels: samples per pixel [count, 1 .. 4].
        size: bytes per sample [1 or 2].
        is_little: the smaller byte of a sample comes first.
        padding: bytes behind each row.
    """

    at: int
    width: int
    height: int
    channels: int
    size: int = 1
    is_little: bool = False
    padding: int = 0

    @property
    def stride(self) -> int:
        return self.width * self.channels * self.size + self.padding

    def is_sound(self) -> bool:
        sides = 0 < self.width * self.channels <= WIDEST and 0 < self.height < 1 << 24
        return sides and 1 <= self.channels <= 4 and self.size in (1, 2)


def find(raw: bytes) -> Iterator[Raster]:
    """Yield every raster that a header in `raw` announces, in order of their headers."""
    found = [*_pnm(raw), *_pam(raw), *_bmp(raw), *_npy(raw)]
    yield from sorted((raster for raster in found if raster.is_sound()), key=lambda raster: raster.at)


def samples(raw: bytes, raster: Raster) -> NDArray[np.uint16] | None:
    """Return whole rows as (rows, width, channels), or None when bytes between the rows are not zero."""
    table = np.frombuffer(raw, np.uint8).reshape(-1, raster.stride)
    used = raster.stride - raster.padding
    if table[:, used:].any():
        return None
    kind = np.dtype("u1" if raster.size == 1 else "<u2" if raster.is_little else ">u2")
    rows = np.ascontiguousarray(table[:, :used]).view(kind).astype(np.uint16)
    return rows.reshape(-1, raster.width, raster.channels)


def rows_of(values: NDArray[np.uint16], raster: Raster) -> bytes:
    """Return the bytes of rows: the reverse of `samples`."""
    kind = np.dtype("u1" if raster.size == 1 else "<u2" if raster.is_little else ">u2")
    rows = np.ascontiguousarray(values.astype(kind)).view(np.uint8).reshape(len(values), -1)
    return np.pad(rows, ((0, 0), (0, raster.padding))).tobytes()


def _pnm(raw: bytes) -> Iterator[Raster]:
    for head in PNM.finditer(raw):
        width, height, most = (int(head[i]) for i in (2, 3, 4))
        if 0 < most < 65536:
            yield Raster(head.end(), width, height, 3 if head[1] == b"6" else 1, 1 if most < 256 else 2)


def _pam(raw: bytes) -> Iterator[Raster]:
    for head in PAM.finditer(raw):
        pairs = (line.split(None, 1) for line in head[1].splitlines() if not line.startswith(b"#"))
        said = {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
        numbers = [said.get(key, b"").strip() for key in (b"WIDTH", b"HEIGHT", b"DEPTH", b"MAXVAL")]
        if all(number.isdigit() and len(number) < 8 for number in numbers):
            width, height, channels, most = map(int, numbers)
            yield Raster(head.end(), width, height, channels, 1 if most < 256 else 2)


def _bmp(raw: bytes) -> Iterator[Raster]:
    for head in BMP.finditer(raw):
        begin, size, width, height = struct.unpack_from("<IIii", head[0], 10)
        bits, compression = struct.unpack_from("<HI", head[0], 28)
        if size >= 40 and bits in (8, 24, 32) and compression == 0 and begin >= 54:
            used = width * bits // 8
            yield Raster(head.start() + begin, width, abs(height), bits // 8, padding=-used % 4)


def _npy(raw: bytes) -> Iterator[Raster]:
    for head in NPY.finditer(raw):
        try:
            said = ast.literal_eval(head[1].decode("ascii"))
            kind, shape = str(said["descr"]), tuple(said["shape"])
        except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError):
            continue
        known = kind in ("|u1", "<u2", ">u2") and len(shape) in (2, 3) and not said.get("fortran_order")
        if known and all(isinstance(side, int) for side in shape):
            height, width, channels = (*shape, 1)[:3]
            yield Raster(head.end(), width, height, channels, int(kind[2]), kind[0] == "<")
