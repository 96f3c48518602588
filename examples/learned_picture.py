"""A picture as the weights of a small network from place to color, packed: its true size against JPEG and WebP.

    python examples/learned_picture.py [tiny | FILE ...]     tiny: a few steps on a small picture, for the tests

A network with sines (SIREN) is fitted to one picture, its weights rounded to a grid per matrix while it still learns,
and packed by `cm`. What is written is all that is needed: sizes, a scale per matrix, the rounded weights. It is lossy,
so it is no codec of `kobza pack`; and floats may round a color differently on another machine, by one level of 255.

Sources: Sitzmann et al. (2020), arXiv:2006.09661 (sines, their first weights); Dupont et al. (2021), COIN,
arXiv:2103.03123 (weights as the file).
"""

from __future__ import annotations

import io
import itertools
import math
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kobza.codecs import base, cm
from kobza.core.table import Table
from kobza.models.fitting import fit

HEAD = struct.Struct("<HHBBB")  # width, height, hidden units, hidden layers, bits per weight
OMEGA = 30.0  # Sitzmann et al., section 3.2
MOST_UNITS = 64
Pixels = NDArray[np.uint8]


def places(width: int, height: int) -> NDArray[np.float64]:
    """Return (height * width, 2) places between -1 and 1."""
    y, x = np.mgrid[:height, :width]
    return np.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1).reshape(-1, 2)


def shapes(units: int, layers: int) -> list[tuple[int, int]]:
    """Return inputs and outputs of every matrix."""
    sizes = [2, *[units] * layers, 3]
    return list(itertools.pairwise(sizes))


def first_weights(units: int, layers: int, seed: int) -> list[Tensor]:
    """Return matrices (outputs, inputs + 1), the last column the offset, as SIREN begins."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for k, (inputs, outputs) in enumerate(shapes(units, layers)):
        bound = 1 / inputs if k == 0 else math.sqrt(6 / inputs) / OMEGA
        made.append((2 * torch.rand(outputs, inputs + 1, generator=generator) - 1) * bound)
    return made


def rounded(weight: Any, bits: int) -> tuple[Any, Any]:
    """Return a matrix as whole numbers of `bits` bits, and the scale they are to be multiplied with."""
    scale = abs(weight).max() / (2 ** (bits - 1) - 1)
    return (weight / scale).round(), scale


def colors(at: Any, weights: list[Any], sine: Any) -> Any:
    """Return (N, 3) colors, about 0 .. 1, of (N, 2) places; the same for torch and numpy."""
    for k, weight in enumerate(weights):
        at = at @ weight[:, :-1].T + weight[:, -1]
        at = sine(OMEGA * at) if k < len(weights) - 1 else at
    return at / 2 + 0.5


def learn(pixels: Pixels, *, units: int, layers: int = 3, bits: int = 7, steps: int = 2000, seed: int = 0) -> bytes:
    """Return the file of a picture (height, width, 3).

    Args:
        pixels: the picture.
        units: units per hidden layer [count, 1 .. 64].
        layers: hidden layers [count, 1 .. 9].
        bits: bits per weight before `cm` [count, 3 .. 8].
        steps: updates, all places in each; in the last third the weights are rounded [count, 1 ..].
        seed: of the first weights.
    """
    height, width, _ = pixels.shape
    at = torch.from_numpy(places(width, height)).float()
    wanted = torch.tensor(pixels.reshape(-1, 3) / 255, dtype=torch.float32)
    weights = [weight.requires_grad_() for weight in first_weights(units, layers, seed)]

    def as_stored(weight: Tensor) -> Tensor:
        whole, scale = rounded(weight.detach(), bits)
        return weight + (whole * scale - weight.detach())  # the gradient passes as if nothing were rounded

    def loss(step: int) -> Tensor:
        used = [as_stored(weight) for weight in weights] if 3 * step > 2 * steps else weights
        return ((colors(at, used, torch.sin) - wanted) ** 2).mean()

    fit(weights, loss, steps=steps, rate=2e-3)
    pairs = [rounded(weight.detach().numpy().astype(np.float64), bits) for weight in weights]
    scales = struct.pack(f"<{len(pairs)}f", *(scale for _, scale in pairs))
    numbers = b"".join(whole.astype(np.int8).tobytes() for whole, _ in pairs)
    return HEAD.pack(width, height, units, layers, bits) + scales + cm.coder().encode(numbers)


def show(file: bytes) -> Pixels:
    """Return the picture of a file.

    Raises:
        ValueError: the sizes it tells are none.
    """
    width, height, units, layers, _ = HEAD.unpack_from(file)
    if not (width and height and 0 < units <= MOST_UNITS and 0 < layers < 10):
        raise ValueError(f"no picture of {width} x {height} by {layers} layers of {units}")
    kinds = shapes(units, layers)
    scales = struct.unpack_from(f"<{len(kinds)}f", file, HEAD.size)
    size = sum((inputs + 1) * outputs for inputs, outputs in kinds)
    numbers = base.decoder("cm", 1, {}, {})(file[HEAD.size + 4 * len(kinds) :], size)
    whole, weights, done = np.frombuffer(numbers, np.int8).astype(np.float64), [], 0
    for (inputs, outputs), scale in zip(kinds, scales, strict=True):
        weights.append(scale * whole[done : done + (inputs + 1) * outputs].reshape(outputs, inputs + 1))
        done += (inputs + 1) * outputs
    levels = colors(places(width, height), weights, np.sin) * 255
    return levels.round().clip(0, 255).astype(np.uint8).reshape(height, width, 3)


def psnr(a: Pixels, b: Pixels) -> float:
    """Return the peak signal-to-noise ratio [dB]."""
    return 10 * math.log10(255**2 / max(1e-9, float(((a.astype(float) - b) ** 2).mean())))


def peer(pixels: Pixels, kind: str, most: int) -> tuple[int, float]:
    """Return bytes and PSNR of the best file of at most `most` bytes; of the smallest there is when all are larger."""
    found = []
    for quality in range(1, 96):
        file = io.BytesIO()
        options = {"optimize": True} if kind == "JPEG" else {"method": 6}
        Image.fromarray(pixels).save(file, kind, quality=quality, **options)
        with Image.open(file) as back:
            found.append((len(file.getvalue()), psnr(np.asarray(back.convert("RGB")), pixels)))
    fitting = [pair for pair in found if pair[0] <= most]
    return max(fitting, key=lambda pair: pair[1]) if fitting else min(found)


def row(name: str, pixels: Pixels, units: int, steps: int) -> dict[str, Any]:
    """Learn one picture and measure the peers at its size."""
    file = learn(pixels, units=units, steps=steps)
    made = {"picture": name, "units": units, "size": len(file), "ours": psnr(show(file), pixels)}
    made["bits_per_pixel"] = 8 * len(file) / (pixels.shape[0] * pixels.shape[1])
    for kind in ("JPEG", "WEBP"):
        made[f"{kind} B"], made[kind] = peer(pixels, kind, len(file))
    return made


def photographs() -> dict[str, Pixels]:
    """Return two photographs of scikit-learn, 128 pixels wide and high after halving twice."""
    from sklearn.datasets import load_sample_image

    squares = {name: load_sample_image(f"{name}.jpg")[:, 60:487] for name in ("china", "flower")}
    return {
        name: np.asarray(Image.fromarray(p).resize((128, 128), Image.Resampling.BOX)) for name, p in squares.items()
    }


def main() -> None:
    """Print a table of sizes and PSNR."""
    words = sys.argv[1:]
    if words == ["tiny"]:
        y, x = np.mgrid[:16, :16]
        jobs = [row("slope", np.stack([15 * x, 15 * y, 8 * (x + y)], -1).astype(np.uint8), 8, 60)]
    else:
        files = {Path(word).name: np.asarray(Image.open(word).convert("RGB")) for word in words} or photographs()
        jobs = [row(name, pixels, units, 2000) for name, pixels in files.items() for units in (10, 16, 24, 36)]
    units_ = {"size": "B", "JPEG B": "B", "WEBP B": "B", "ours": "dB", "JPEG": "dB", "WEBP": "dB"}
    print(Table(jobs, units=units_, title="A picture as a network, against JPEG and WebP of at most its size"))


if __name__ == "__main__":
    main()
