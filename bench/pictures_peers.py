"""Pictures and what other lossless formats make of them, in an environment of its own: called by `bench/pictures.py`.

    PYTHON bench/pictures_peers.py FOLDER ROWS.jsonl PNG_FOLDER PATTERN

Writes every picture whose name matches PATTERN to FOLDER as NPY (height, width, channels), and appends a row of bytes
per format to ROWS.jsonl. Each format is the strongest its encoder offers, is decoded again and must give all samples.
"""

from __future__ import annotations

import fnmatch
import gzip
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import oxipng
import qoi

ZOPFLI_BELOW, SLOW_BELOW = 300_000, 1_000_000  # bytes of samples up to which the slowest searches of PNG are done


def package(name: str) -> Path:
    """Folder of an installed package, which is not imported."""
    found = importlib.util.find_spec(name)
    assert found and found.origin, name
    return Path(found.origin).parent


def files(own: Path) -> Iterator[Path]:
    """Yield pictures as files: those of the packages, and the PNG files of a folder."""
    sample, icons = (package("matplotlib") / "mpl-data" / part for part in ("sample_data", "images"))
    for folder in (package("skimage") / "data", package("sklearn") / "datasets" / "images", sample, own):
        yield from sorted(path for path in folder.iterdir() if path.suffix in (".png", ".jpg"))
    yield from sorted(icons.glob("*_large.png"))


def pixels(path: Path) -> Any:
    """Samples of a file, palettes looked up."""
    from PIL import Image

    with Image.open(path) as picture:
        if picture.mode in ("P", "CMYK"):
            picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
        return np.asarray(picture.convert("L") if picture.mode == "1" else picture)


def deep() -> dict[str, Callable[[], Any]]:
    """Three measurements of 16 bits: a scan, heights, and disparities in steps of 1/64."""
    sample, data = package("matplotlib") / "mpl-data" / "sample_data", package("skimage") / "data"

    def disparity() -> Any:
        steps = np.load(data / "motorcycle_disp.npz")["arr_0"] * 64
        return np.round(np.nan_to_num(steps, posinf=0)).clip(0, 65535).astype(np.uint16)

    return {
        "mri16": lambda: np.frombuffer(gzip.decompress((sample / "s1045.ima.gz").read_bytes()), np.uint16).reshape(
            256, 256
        ),
        "dem16": lambda: np.load(sample / "jacksboro_fault_dem.npz")["elevation"].astype(np.uint16),
        "disp16": disparity,
    }


def plots() -> dict[str, Callable[[], Any]]:
    """Four plots as matplotlib draws them."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    def lines(a: Any, rng: np.random.Generator) -> None:
        for k in range(4):
            a.plot(np.cumsum(rng.normal(size=400)), label=str(k))
        a.legend()
        a.grid()

    def drawn(draw: Callable[..., Any]) -> Any:
        figure, axes = plt.subplots(figsize=(8, 5), dpi=100)
        draw(axes, np.random.default_rng(0))
        figure.canvas.draw()
        seen = np.asarray(figure.canvas.buffer_rgba()).copy()
        plt.close(figure)
        return seen

    draws = {
        "plot-lines": lines,
        "plot-heat": lambda a, rng: a.imshow(rng.normal(size=(24, 32)), cmap="viridis"),
        "plot-scatter": lambda a, rng: a.scatter(*rng.normal(size=(2, 2000)), c=rng.random(2000), alpha=0.5, s=12),
        "plot-bars": lambda a, rng: a.bar(range(12), rng.random(12)),
    }
    return {name: lambda d=draw: drawn(d) for name, draw in draws.items()}


def png(picture: Any) -> bytes:
    """Return the smallest PNG of zlib, oxipng's filters and, for small pictures, its zopfli."""
    made = [imagecodecs.png_encode(picture, level=9)]
    level = 6 if picture.nbytes < SLOW_BELOW else 4
    made.append(oxipng.optimize_from_memory(made[0], level=level, optimize_alpha=False))
    if picture.nbytes < ZOPFLI_BELOW:
        slow = oxipng.Deflaters.zopfli(8)
        made.append(oxipng.optimize_from_memory(made[0], level=3, deflate=slow, optimize_alpha=False))
    return min(made, key=len)


def formats(picture: Any) -> Iterator[tuple[str, Callable[[], bytes], Callable[[bytes], Any]]]:
    """Yield name, encoder and decoder of every format that holds such samples; grey goes in as three channels."""
    yield "PNG", lambda: png(picture), imagecodecs.png_decode
    jxl = imagecodecs.jpegxl_encode
    yield "JPEG XL", lambda: jxl(picture, lossless=True, effort=9), imagecodecs.jpegxl_decode
    if picture.dtype == np.uint8 and (picture.ndim == 2 or picture.shape[2] >= 3):
        color = np.ascontiguousarray(picture if picture.ndim == 3 else np.repeat(picture[:, :, None], 3, 2))
        webp = imagecodecs.webp_encode
        yield "WebP", lambda: webp(color, lossless=True, level=100, method=6), imagecodecs.webp_decode
        yield "QOI", lambda: qoi.encode(color), qoi.decode


def rgba(picture: Any) -> Any:
    """Samples as four channels of 16 bits, so that what a format keeps as grey or without alpha can be compared."""
    picture = picture.reshape(*picture.shape[:2], -1)
    channels, scale = picture.shape[2], 257 if picture.dtype == np.uint8 else 1
    color = picture[:, :, :3] if channels > 2 else np.repeat(picture[:, :, :1], 3, 2)
    alpha = picture[:, :, -1:] if channels in (2, 4) else np.full_like(color[:, :, :1], 65535 // scale)
    return np.concatenate([color, alpha], 2).astype(np.uint32) * scale


def main() -> None:
    """Write pictures, and measure what the journal lacks."""
    folder, journal, own, pattern = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    sources = {path.stem: lambda p=path: pixels(p) for path in files(own)} | deep() | plots()
    lines = journal.read_text(encoding="utf-8").splitlines() if journal.is_file() else []
    done = {(row["picture"], row["format"]) for row in map(json.loads, lines)}
    for name in fnmatch.filter(sources, pattern):
        picture = np.ascontiguousarray(sources[name]())
        np.save(folder / f"{name}.npy", picture)
        for kind, encode, decode in formats(picture):
            if (name, kind) in done:
                continue
            packed = encode()
            assert np.array_equal(rgba(decode(packed)), rgba(picture)), (name, kind)
            row = {"picture": name, "format": kind, "raw": picture.nbytes, "packed": len(packed)}
            with journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
