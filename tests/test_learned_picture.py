"""The example that learns a picture: what is written is all that is needed, and more steps give more of it."""

import runpy
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).resolve().parents[1] / "examples" / "learned_picture.py"


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(HERE))


def waves() -> np.ndarray:
    y, x = np.mgrid[:20, :24]
    return (
        np.stack([128 + 100 * np.sin(x / 4), 128 + 90 * np.cos(y / 5), 6 * x + 5 * y], -1).clip(0, 255).astype(np.uint8)
    )


def test_a_file_alone_gives_the_picture_that_was_measured(example: dict[str, Any]) -> None:
    few, more = (example["learn"](waves(), units=12, steps=steps) for steps in (5, 300))
    assert example["show"](more).shape == (20, 24, 3)
    quality = [example["psnr"](example["show"](file), waves()) for file in (few, more)]
    assert quality[1] > quality[0] + 8
    assert quality[1] > 25
    weights = 3 * 12 + 2 * 13 * 12 + 13 * 3
    assert len(more) < weights * 7 / 8 + 7 + 16 + 30
    assert example["learn"](waves(), units=12, steps=5) == few


def test_more_bits_per_weight_lose_less(example: dict[str, Any]) -> None:
    weight = np.linspace(-1, 1, 101).reshape(1, -1)
    off = []
    for bits in (3, 5, 8):
        whole, scale = example["rounded"](weight, bits)
        assert abs(whole).max() < 2 ** (bits - 1)
        off.append(abs(whole * scale - weight).max())
    assert off[0] > 3 * off[1] > 9 * off[2]


def test_psnr_equals_the_closed_formula(example: dict[str, Any]) -> None:
    black, grey = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 51, np.uint8)
    assert example["psnr"](black, grey) == pytest.approx(20 * np.log10(5))


def test_sizes_that_are_none_are_refused(example: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no picture of 9 x 0"):
        example["show"](struct.pack("<HHBBB", 9, 0, 5, 2, 7) + bytes(40))
