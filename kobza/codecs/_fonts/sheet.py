"""A font sheet: a picture of glyphs in rows and columns without gaps, taken apart into a PSF 2 font.

The grid, where it is not given, is the one under which the glyphs pack smallest: whether it is right shows in nothing
better, since blank glyphs and glyphs that touch leave no lines to see. Of all sizes that divide the picture a few are
tried: those whose columns, and rows, differ most in ink for the number of places they have (the F statistic of Fisher
1925, Statistical Methods for Research Workers, ch. 7).
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kobza.codecs import native
from kobza.codecs._fonts import psf
from kobza.codecs._fonts.grids import WIDEST, rows_of
from kobza.core.errors import BadValue

SMALLEST, TRIED, MOST_PIXELS = 4, 4, 1 << 24
SAMPLE = 1 << 17  # pixels on which grids are tried
Ink = NDArray[np.uint8]


def grey(file: bytes) -> NDArray[np.uint8]:
    """Return a picture file of any kind that Pillow knows as (height, width), 0 black .. 255 white.

    Raises:
        BadValue: it is no picture, or one of more than 2^24 pixels.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings(action="error"), Image.open(io.BytesIO(file)) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise BadValue(f"the sheet has {picture.width} x {picture.height} pixels; allowed are 2^24 in all.")
            return np.asarray(picture.convert("L"))
    except (UnidentifiedImageError, OSError, ValueError, Warning, Image.DecompressionBombError) as error:
        raise BadValue(f"the sheet is no picture that Pillow can read: {error}.") from error


def ink_of(pixels: NDArray[Any], threshold: int) -> Ink:
    """Return 1 where a pixel is ink: on the rarer side of the threshold."""
    light = (pixels >= threshold).astype(np.uint8)
    return 1 - light if 2 * int(light.sum()) > light.size else light


def parse(grid: str) -> tuple[int, int] | None:
    """Return the width and height of glyphs that `8x16` says, or None for `auto`.

    Raises:
        BadValue: it is neither.
    """
    if grid == "auto":
        return None
    found = re.fullmatch(r"(\d{1,3})x(\d{1,3})", grid)
    if not found or not int(found[1]) or not int(found[2]):
        raise BadValue(f"grid is {grid!r}; allowed are auto and WIDTHxHEIGHT in pixels, such as 8x16.")
    return int(found[1]), int(found[2])


def cut(ink: Ink, grid: tuple[int, int]) -> bytes:
    """Return the PSF 2 font of the cells, row by row.

    Raises:
        BadValue: the cells do not fill the picture.
    """
    (rows, columns), (width, height) = ink.shape, grid
    if columns % width or rows % height:
        raise BadValue(f"a sheet of {columns} x {rows} pixels cannot be cut into cells of {width} x {height}.")
    cells = ink.reshape(rows // height, height, columns // width, width).swapaxes(1, 2).reshape(-1, height, width)
    bits = np.packbits(cells, axis=2)
    size = bits.shape[1] * bits.shape[2]
    return struct.pack("<4s7I", psf.MAGIC_2, 0, 32, 0, len(cells), size, height, width) + bits.tobytes()


def find_grid(ink: Ink) -> tuple[int, int]:
    """Return the width and height of the cells under which the glyphs pack smallest.

    Raises:
        BadValue: no size of 4 to 64 pixels divides the picture into two cells at least.
    """
    widths, heights = _likely(ink.mean(0)), _likely(ink.mean(1))
    tried = [(w, h) for w in widths for h in heights if (w, h) != ink.shape[::-1]]
    if not tried:
        raise BadValue(f"no grid of {SMALLEST} to {WIDEST} pixels fits a sheet of {ink.shape[1]} x {ink.shape[0]}.")
    return min(tried, key=lambda grid: _cost(ink, grid))


def _cost(ink: Ink, grid: tuple[int, int]) -> float:
    """Return bits per pixel of the first rows of cells."""
    rows = max(1, min(len(ink), SAMPLE // ink.shape[1]) // grid[1]) * grid[1]
    _, rest, bits = psf.take(cut(ink[:rows], grid), 0)
    cells = psf.grid(rest)
    payload = native.glyphs_encode(cells.shapes(), rows_of(bits, cells).tobytes())
    return 8 * len(payload) / (rows * ink.shape[1])


def _likely(profile: NDArray[np.float64]) -> list[int]:
    """Return the periods that explain most of a profile, for how many places they have."""
    size = len(profile)
    periods = [n for n in range(SMALLEST, min(size, WIDEST) + 1) if size % n == 0]
    return sorted(periods, key=lambda n: -_explained(profile, n))[:TRIED]


def _explained(profile: NDArray[np.float64], period: int) -> float:
    means = profile.reshape(-1, period).mean(0)
    between = ((means - profile.mean()) ** 2).sum() * (len(profile) // period) / (period - 1)
    within = ((profile.reshape(-1, period) - means) ** 2).sum() / max(1, len(profile) - period)
    return float(between / (within + 1e-12))
