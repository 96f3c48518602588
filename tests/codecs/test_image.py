"""image: any bytes and any picture come back, and pictures come back from less than PNG needs."""

from __future__ import annotations

import hashlib
import io
import random
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kobza.codecs import base, image, native
from kobza.codecs.native import plain_picture
from kobza.core.errors import BadValue, KobzaError, OutOfRange

GOLDEN = Path(__file__).parent / "golden" / "pictures" / "image.kbz"  # of version 1, written once and for ever
RNG = np.random.default_rng(4)
needs_compiled = pytest.mark.skipif(not native.compiled, reason="the C extension is not built; see kobza doctor")


def smooth(height: int, width: int, channels: int, top: int = 255) -> np.ndarray:
    """Return a picture with a slope, a wave and a little noise."""
    y, x = np.mgrid[:height, :width]
    base_ = (y + x) / (height + width) * 0.6 + 0.2 + 0.1 * np.sin(x / 5)
    noisy = base_[:, :, None] + RNG.normal(0, 0.01, (height, width, channels))
    return (noisy.clip(0, 1) * top).astype(np.uint8 if top < 256 else np.uint16)


def pnm(pixels: np.ndarray, comment: bytes = b"") -> bytes:
    """Return a PGM or PPM file of uint8 or uint16 pixels (height, width, 1 or 3)."""
    height, width, channels = pixels.shape
    most = 255 if pixels.dtype == np.uint8 else 65535
    head = f"{width} {height}\n{most}\n".encode()
    kind = b"P6\n" if channels == 3 else b"P5\n"
    return kind + comment + head + pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()


def bmp(pixels: np.ndarray) -> bytes:
    """Return a BMP file of uint8 pixels (height, width, 3)."""
    height, width, _ = pixels.shape
    rows = np.pad(pixels.reshape(height, -1), ((0, 0), (0, -width * 3 % 4))).tobytes()
    head = struct.pack("<2sIIIIiiHHIIiiII", b"BM", 54 + len(rows), 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return head + rows


@needs_compiled
@settings(max_examples=30, deadline=None)
@given(st.data())
def test_compiled_pictures_equal_the_plain_ones(data):
    width, height, channels = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
    depth, mode = data.draw(st.sampled_from([1, 5, 8, 12, 16])), data.draw(st.integers(0, 2))
    size, few = 2 if depth > 8 else 1, data.draw(st.lists(st.integers(0, (1 << depth) - 1), min_size=1, max_size=5))
    count = width * height * channels
    values = data.draw(st.lists(st.sampled_from(few), min_size=count, max_size=count))
    raw = b"".join(value.to_bytes(size, "big") for value in values)
    shape = (width, height, channels, depth, mode)
    packed = native.kernels.picture_encode(raw, *shape)
    assert packed == plain_picture.picture_encode(raw, *shape)
    assert native.kernels.picture_decode(packed, *shape) == plain_picture.picture_decode(packed, *shape) == raw


@needs_compiled
@settings(max_examples=15, deadline=None)
@given(st.binary(max_size=40), st.integers(0, 2), st.sampled_from([1, 8, 16]))
def test_compiled_and_plain_pictures_agree_on_hostile_payloads(payload, mode, depth):
    shape = (5, 4, 3, depth, mode)
    assert native.picture_decode(payload, *shape) == plain_picture.picture_decode(payload, *shape)


@needs_compiled
def test_a_shape_that_is_none_is_refused():
    for shape in [(0, 1, 1, 8, 0), (1, 1, 5, 8, 0), (1, 1, 1, 17, 0), (1, 1, 1, 8, 3), (1 << 24, 1 << 24, 4, 16, 0)]:
        with pytest.raises(ValueError, match="shape|2\\^30"):
            native.kernels.picture_decode(b"123", *shape)
    with pytest.raises(ValueError, match="shape"):
        native.kernels.picture_encode(b"123", 2, 2, 1, 8, 0)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_array_of_pixels_comes_back(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 12), min_size=2, max_size=2)))
    shape += data.draw(st.sampled_from([(), (1,), (2,), (3,), (4,)]))
    kind = data.draw(st.sampled_from([np.uint8, np.uint16]))
    low, high = sorted(data.draw(st.tuples(st.integers(0, 255), st.integers(0, 255))))
    pixels = np.random.default_rng(data.draw(st.integers(0, 99))).integers(low, high, shape, kind, endpoint=True)
    back = image.unpack_pixels(image.pack_pixels(pixels))
    assert back.dtype == pixels.dtype
    assert np.array_equal(back, pixels)


@pytest.mark.parametrize(
    "file",
    [
        pnm(smooth(40, 50, 3), b"# a comment\n"),
        pnm(smooth(30, 31, 1, 65535)),
        bmp(smooth(20, 19, 3)),
        b"P7\nWIDTH 9\nHEIGHT 4\nDEPTH 4\nMAXVAL 255\nTUPLTYPE RGB_ALPHA\nENDHDR\n" + bytes(range(144)),
        b"before" + pnm(smooth(20, 20, 1)) + b"between" + bmp(smooth(9, 9, 3)) + b"behind",
        pnm(smooth(30, 30, 3))[:1500],
        b"P5 4 4 255\n" + b"P5 2 2 255\nabcdefgh",
        b"P5 9999999 9999999 65535\n" + bytes(80),
    ],
)
def test_files_come_back_with_all_their_bytes(file):
    assert image.decompress(image.compress(file)) == file
    for end in (len(file) - 1, len(file) // 2, 20):
        assert image.decompress(image.compress(file[:end])) == file[:end]


def test_a_picture_longer_than_a_block_goes_on_in_the_next():
    file = pnm(smooth(300, 100, 3))
    split, whole = image.compress(file, block_log2=15), image.compress(file)
    assert image.decompress(split) == file
    assert len(whole) < len(split) < 1.3 * len(whole)


def test_a_photograph_takes_less_than_an_optimized_png():
    from PIL import Image
    from sklearn.datasets import load_sample_image

    pixels = load_sample_image("flower.jpg")[:160, :200]
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "png", optimize=True)
    assert len(image.pack_pixels(pixels)) < 0.85 * len(png.getvalue())


def test_graphics_take_less_than_an_optimized_png():
    from PIL import Image

    pixels = np.full((200, 300, 3), 255, np.uint8)
    for k in range(40):
        pixels[5 * k : 5 * k + 3, 7 * k : 7 * k + 9] = (k % 5 * 50, 90, 200)
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "png", optimize=True)
    assert len(image.pack_pixels(pixels)) < len(png.getvalue())


def test_a_damaged_file_never_gives_wrong_bytes():
    for file in (
        pnm(smooth(12, 12, 3)),
        pnm(np.kron(np.eye(6, dtype=np.uint8) * 9, np.ones((3, 3), np.uint8))[..., None]),
    ):
        blob, rng = image.compress(file), random.Random(7)
        for end in range(len(blob)):
            with pytest.raises(base.Corrupt):
                image.decompress(blob[:end])
        for _ in range(1000):
            damaged = bytearray(blob)
            damaged[rng.randrange(len(blob))] = rng.randrange(256)
            try:
                assert image.decompress(bytes(damaged)) == file
            except KobzaError:
                continue


def test_damage_behind_the_checksums_is_refused_or_bounded():
    payload = image.coder().encode(pnm(smooth(12, 12, 3)))
    decode, rng = base.decoder("image", 1, {}, {}), random.Random(8)
    for _ in range(3000):
        damaged = bytearray(payload)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(min(len(payload), 60))] = rng.randrange(256)
        try:
            assert len(decode(bytes(damaged[: rng.randrange(len(payload) + 1)]), 500)) <= 500
        except (ValueError, KobzaError):
            continue


def test_other_arrays_are_refused():
    with pytest.raises(BadValue, match="float64"):
        image.pack_pixels(np.zeros((2, 2)))
    with pytest.raises(BadValue, match="no array"):
        image.unpack_pixels(image.compress(b"text"))
    with pytest.raises(OutOfRange, match="9; allowed are 10 to 24"):
        image.compress(b"", block_log2=9)


def test_the_payload_of_a_fixed_picture_never_changes():
    raw = bytes((x * x + 3 * y * (x & 3)) & 255 for y in range(24) for x in range(72))
    made = [hashlib.sha256(native.picture_encode(raw, 24, 24, 3, 8, mode)).hexdigest()[:16] for mode in range(3)]
    assert made == ["cd3b2817a1661140", "1f4409366ea84cd3", "db3859a65d302770"]


def test_a_golden_file_of_pictures_is_read_as_ever():
    y, x = np.mgrid[:20, :24]
    slope = (5 * x + 3 * y + x * y // 7)[:, :, None] + np.array([0, 9, 30]) & 255
    sparse = (x * y % 7 * 9001)[:, :, None]
    blocks = (x // 4 * 37 + y // 3 * 91)[:, :, None] * np.array([1, 2, 3]) & 255
    five_colors = ((x // 2 * 7 + y * y) % 5)[:, :, None] * np.array([50, 23, 61])
    pictures = [p.astype(np.uint16 if p.max() > 255 else np.uint8) for p in (slope, sparse, blocks, five_colors)]
    blob = GOLDEN.read_bytes()
    assert image.decompress(blob) == b"".join(map(pnm, pictures))
    ways = [b"\x18\x14\3\1\0\x08\0\0", b"\x18\x14\1\2\0\3\0\1", b"\x18\x14\3\1\0\x08\1\0", b"\x18\x14\3\1\0\3\2\2"]
    assert all(way in blob for way in ways)  # a photograph, a table of values, graphics and a palette
