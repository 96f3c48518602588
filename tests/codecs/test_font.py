"""font: any bytes and any font come back, and a font's glyphs from less than xz and zstd need."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import random
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kobza.codecs import base, cm, font, native
from kobza.codecs._fonts import grids, pcf, psf, sheet, text
from kobza.codecs.native import plain_glyphs
from kobza.core.errors import BadValue, KobzaError, OutOfRange

GOLDEN = Path(__file__).parent / "golden" / "pictures" / "font.kbz"  # of version 1, written once and for ever
CONSOLE, MISC = Path("/usr/share/consolefonts"), Path("/usr/share/fonts/X11/misc")
needs_compiled = pytest.mark.skipif(not native.compiled, reason="the C extension is not built; see kobza doctor")


def drawn(code: int, width: int, height: int) -> list[int]:
    """Return the rows of a made-up letter: stems and bars that depend on the bits of `code`."""
    rows = [0] * height
    for y in range(1, height - 1):
        stems = (code & 1) << width - 2 | (code >> 1 & 1) << 1 | (code >> 2 & 1) << width // 2
        bar = (1 << width - 1) - 2 if y == 1 + (code >> 3) % (height - 2) else 0
        rows[y] = stems | bar
    return rows


def packed(rows: list[int], width: int, *, pad: int = 1) -> bytes:
    stride = (width + 8 * pad - 1) // (8 * pad) * pad
    return b"".join((row << 8 * stride - width).to_bytes(stride, "big") for row in rows)


def psf_1(height: int = 9) -> bytes:
    bits = b"".join(packed(drawn(n % 97, 8, height), 8) for n in range(256))
    table = b"".join(struct.pack("<HHHH", 65 + n, 0xFFFE, 9000 - n, 0xFFFF) for n in range(256))
    return b"\x36\x04\x02" + bytes((height,)) + bits + table


def psf_2(width: int, height: int, count: int = 40) -> bytes:
    bits = b"".join(packed(drawn(n, width, height), width) for n in range(count))
    head = struct.pack("<4s7I", b"\x72\xb5\x4a\x86", 0, 32, 1, count, len(bits) // count, height, width)
    table = b"".join(chr(0x400 + n).encode() + b"\xfe" + chr(0x1F600).encode() + b"\xff" for n in range(count))
    return head + bits + table


def pcf_(
    order: str = ">", pad: int = 2, count: int = 30, *, is_reversed: bool = False, is_compressed: bool = True
) -> bytes:
    """Return a PCF font of glyphs of several widths."""
    widths, height = [3 + n % 9 for n in range(count)], 11
    glyphs = [packed(drawn(n, widths[n], height), widths[n], pad=1 << pad) for n in range(count)]
    bits = b"".join(glyphs)
    bits = bits.translate(bytes(grids.REVERSED)) if is_reversed else bits
    format_ = (4 if order == ">" else 0) | (0 if is_reversed else 8) | pad
    boxes = [(1, 1 + width, width + 2, 9, 2, 0) for width in widths]
    if is_compressed:
        metrics = struct.pack(order + "H", count) + b"".join(bytes(128 + v for v in box[:5]) for box in boxes)
    else:
        metrics = struct.pack(order + "I", count) + b"".join(struct.pack(order + "6h", *box) for box in boxes)
    starts = np.cumsum([0, *map(len, glyphs)])[:-1]
    bitmaps = struct.pack(f"{order}I{count}I4I", count, *starts, *[len(bits)] * 4) + bits
    names = b"".join(b"uni%04X\0" % (0x410 + n) for n in range(count))
    offsets = [8 * n for n in range(count)]
    tables = {
        4: (format_ | (0x100 if is_compressed else 0), metrics),
        8: (format_, bitmaps),
        32: (format_, struct.pack(f"{order}5H{count + 2}H", 64, 65 + count, 0, 0, 64, 0xFFFF, *range(count), 0xFFFF)),
        64: (format_, struct.pack(f"{order}I{count}I", count, *(500 + 10 * w for w in widths))),
        128: (format_, struct.pack(f"{order}I{count}II", count, *offsets, len(names)) + names),
    }
    at, head, body = 8 + 16 * len(tables), b"\1fcp" + struct.pack("<I", len(tables)), b""
    for kind, (made, content) in tables.items():
        whole = struct.pack("<I", made) + content + bytes(-len(content) % 4)
        head += struct.pack("<4I", kind, made, len(whole), at + len(body))
        body += whole
    return head + body


def bdf(count: int = 30, width: int = 11) -> bytes:
    lines = ["STARTFONT 2.1", "FONT -x-y", "SIZE 16 75 75", f"FONTBOUNDINGBOX {width} 12 0 -2", f"CHARS {count}"]
    for n in range(count):
        digits = packed(drawn(n, width, 12), width).hex("\n", -((width + 7) // 8)).upper()
        lines += [f"STARTCHAR uni{0x400 + n:04X}", f"ENCODING {0x400 + n}", "SWIDTH 500 0", f"DWIDTH {width} 0"]
        lines += [f"BBX {width} 12 0 -2", "BITMAP", digits, "ENDCHAR"]
    return "\n".join([*lines, "ENDFONT", ""]).encode()


def hex_lines(count: int = 60) -> bytes:
    lines = []
    for n in range(count):
        code, width = (n + 32 if n < 50 else 0x1F600 + n), 8 * (1 + n % 2)
        lines.append(f"{code:04X}:" if code < 65536 else f"{code:06X}:")
        lines[-1] += packed(drawn(n, width, 16), width).hex().upper()
    return "\n".join([*lines, ""]).encode()


FONTS = {
    "PSF 1": psf_1(),
    "PSF 2": psf_2(12, 20),
    "PSF 2, wide": psf_2(70, 9),
    "PCF": pcf_(),
    "PCF, little": pcf_("<", 0),
    "PCF, reversed bits in units of 4": pcf_("<", 2, is_reversed=True, is_compressed=False),
    "PCF, reversed bits": pcf_(">", 1, is_reversed=True),
    "BDF": bdf(),
    "BDF, small digits": bdf(width=12).replace(b"\nE", b"\n~").replace(b"FFE", b"ffe").replace(b"\n~", b"\nE"),
    "hex": hex_lines(),
}


@needs_compiled
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_compiled_glyphs_equal_the_plain_ones(data):
    sizes = st.tuples(st.integers(1, 20), st.integers(0, 9), st.integers(0, 44), st.integers(0, 5))
    shapes = data.draw(st.lists(sizes, max_size=6))
    shapes += shapes[: data.draw(st.integers(0, 6))]
    few = data.draw(st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=4))
    rows = [
        data.draw(st.sampled_from(few)) & (1 << width) - 1 << 64 - width
        for width, height, *_ in shapes
        for _ in range(height)
    ]
    boxes, numbers = b"".join(struct.pack("=4H", *s) for s in shapes), struct.pack(f"={len(rows)}Q", *rows)
    payload = native.kernels.glyphs_encode(boxes, numbers)
    assert payload == plain_glyphs.glyphs_encode(boxes, numbers)
    assert native.kernels.glyphs_decode(payload, boxes) == plain_glyphs.glyphs_decode(payload, boxes) == numbers


@needs_compiled
@settings(max_examples=15, deadline=None)
@given(st.binary(max_size=40))
def test_compiled_and_plain_glyphs_agree_on_hostile_payloads(payload):
    boxes = struct.pack("=12H", 7, 9, 0, 0, 64, 3, 0, 2, 5, 4, 59, 1)
    assert native.glyphs_decode(payload, boxes) == plain_glyphs.glyphs_decode(payload, boxes)


@pytest.mark.parametrize("module", [native, plain_glyphs])
def test_shapes_that_are_none_are_refused(module):
    for shape in [(65, 1, 0, 0), (60, 1, 5, 0), (0, 1, 0, 0)]:
        with pytest.raises(ValueError, match="64 columns"):
            module.glyphs_decode(b"123", struct.pack("=4H", *shape))
    with pytest.raises(ValueError, match="rows"):
        module.glyphs_encode(struct.pack("=4H", 8, 2, 0, 0), bytes(8))


@pytest.mark.parametrize("name", FONTS)
def test_a_font_is_taken_apart_and_comes_back(name):
    whole = b"before" + FONTS[name] + b"behind\n" if name != "hex" else FONTS[name]
    found = [piece for piece in font.pieces(whole) if piece.grid]
    assert [piece.residue for piece in found] == [b""]
    assert font.decompress(font.compress(whole)) == whole
    assert font.decompress(font.compress(FONTS[name][:-3])) == FONTS[name][:-3]


def test_several_fonts_of_a_block_learn_from_each_other():
    one, both = font.compress(psf_2(12, 20)), font.compress(psf_2(12, 20) + pcf_() + psf_2(12, 20))
    assert font.decompress(both) == psf_2(12, 20) + pcf_() + psf_2(12, 20)
    assert len(both) < len(one) + len(font.compress(pcf_()))


def test_what_a_grid_does_not_cover_is_kept():
    head = struct.pack("<4s7I", b"\x72\xb5\x4a\x86", 0, 32, 0, 30, 25, 6, 20)  # 18 of 25 bytes hold rows
    noise = random.Random(1).randbytes(30 * 25)
    (piece,) = font.pieces(head + noise)
    assert piece.is_full
    assert any(piece.residue)
    assert font.decompress(font.compress(head + noise)) == head + noise
    padded = bytearray(psf_2(12, 20))
    padded[33] |= 1  # behind the twelve pixels of a row
    (piece,) = font.pieces(bytes(padded))
    assert (piece.is_full, piece.residue) == (True, b"")


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(FONTS)), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=3))
def test_fonts_with_any_bytes_changed_come_back(name, changes):
    raw = bytearray(FONTS[name])
    for at, byte in changes:
        raw[at % min(len(raw), 900)] = byte
    assert font.decompress(font.compress(bytes(raw))) == bytes(raw)


def test_a_damaged_file_never_gives_wrong_bytes():
    rng = random.Random(7)
    for raw in (psf_2(9, 7, 12), pcf_(count=9), bdf(5), hex_lines(5)):
        blob = font.compress(raw)
        for end in range(len(blob)):
            with pytest.raises(base.Corrupt):
                font.decompress(blob[:end])
        for _ in range(150):
            damaged = bytearray(blob)
            damaged[rng.randrange(len(blob))] = rng.randrange(256)
            try:
                assert font.decompress(bytes(damaged)) == raw
            except KobzaError:
                continue


def test_damage_behind_the_checksums_is_refused_or_bounded():
    rng = random.Random(8)
    for raw in (psf_2(9, 7, 12), pcf_(count=9), bdf(5), hex_lines(5)):
        payload, decode = font.coder().encode(raw), base.decoder("font", 1, {}, {})
        found, body = font.pieces(raw), b"".join(piece.rest for piece in font.pieces(raw))
        head = b"".join(map(base.varint, [len(found), *(n for p in found for n in (4 * p.kind, len(p.rest)))]))
        assert payload.startswith(bytes((font.APART,)))
        for _ in range(300):
            damaged = bytearray(head + body)
            for _ in range(rng.randint(1, 4)):
                damaged[rng.randrange(min(len(damaged), 140))] = rng.randrange(256)
            stored = bytes((font.APART, font.STORED)) + base.varint(len(damaged)) * 2 + bytes(damaged)
            try:
                assert len(decode(stored + payload[-60:], 5000)) <= 5000
            except (ValueError, LookupError, ArithmeticError, EOFError, KobzaError):
                continue


def test_claims_larger_than_a_block_are_refused():
    decode = base.decoder("font", 1, {}, {})
    for kind, head in (
        (1, struct.pack("<4s7I", b"\x72\xb5\x4a\x86", 0, 32, 0, 1 << 31, 1 << 31, 16, 8)),
        (1, struct.pack("<4s7I", b"\x72\xb5\x4a\x86", 0, 32, 0, 1 << 12, 1 << 12, 1 << 12, 8)),
        (1, struct.pack("<4s7I", b"\x72\xb5\x4a\x86", 0, 32, 0, 1 << 31, 0, 16, 8)),
        (2, b"\1fcp" + struct.pack("<5I", 1, 8, 14, 1 << 31, 24)),
        (3, b"\0STARTFONT 2.1\n" + b"\nBBX 64 65535 0 0\nBITMAP\nENDCHAR\n" * 9),
        (4, base.varint(1 << 40)),
    ):
        body = base.varint(1) + base.varint(4 * kind) + base.varint(len(head)) + head
        payload = bytes((font.APART, font.STORED)) + base.varint(len(body)) * 2 + body + bytes(50)
        with pytest.raises((ValueError, LookupError, KobzaError)):
            decode(payload, 5000)


def test_rows_and_bits_are_each_others_reverse():
    for module, raw in (
        (psf, psf_2(12, 20)),
        (psf, psf_2(70, 9)),
        (pcf, pcf_("<", 2, is_reversed=True)),
        (text, bdf()),
    ):
        _, rest, bits = module.take(raw, 0)
        grid = module.grid(rest)
        rows = grids.rows_of(bits, grid)
        assert grids.bits_of(rows, grid) == bits
        assert np.array_equal(grids.unpacked_rows(grids.packed_rows(rows, grid), grid), rows)
        assert module.give(rest, bits) == raw


def test_a_font_takes_less_than_xz_and_cm():
    for raw in (psf_1(16), pcf_(count=90), bdf(90)):
        size = len(font.compress(raw))
        assert size < len(cm.compress(raw))
        assert size < len(lzma.compress(raw, preset=9))


@pytest.mark.parametrize(
    "path",
    [
        CONSOLE / "Lat15-Fixed16.psf.gz",
        CONSOLE / "FullCyrAsia-Terminus12x6.psf.gz",  # rows reach into their padding
        MISC / "6x13-ISO8859-1.pcf.gz",
        MISC / "cu-devnag12.pcf.gz",  # glyphs of many sizes
        MISC / "olgl19.pcf.gz",  # glyphs of 65 columns
    ],
    ids=lambda path: path.name,
)
def test_glyphs_of_debian_take_less_than_by_xz_and_cm(path):
    if not path.is_file():
        pytest.skip(f"{path.name} is not installed: apt-get install xfonts-base console-setup-linux")
    raw = gzip.decompress(path.read_bytes())
    blob = font.compress(raw)
    assert font.decompress(blob) == raw
    (piece,) = [piece for piece in font.pieces(raw) if piece.grid]
    bits = grids.packed_rows(piece.rows, piece.grid)
    size = len(native.glyphs_encode(piece.grid.shapes(), piece.rows.tobytes()))
    assert size < 0.9 * min(len(lzma.compress(bits, lzma.FORMAT_ALONE, preset=9)), len(native.mixing_encode(bits)))
    assert len(blob) < len(cm.compress(raw))


def test_a_block_size_that_is_none_is_refused():
    with pytest.raises(OutOfRange, match="9; allowed are 10 to 24"):
        font.compress(b"", block_log2=9)


def test_the_payload_of_fixed_glyphs_never_changes():
    (piece,) = font.pieces(psf_2(12, 20))
    payload = native.glyphs_encode(piece.grid.shapes(), piece.rows.tobytes())
    assert hashlib.sha256(payload).hexdigest()[:16] == "f17cdc0a8472a29e"


def test_a_golden_file_of_fonts_is_read_as_ever():
    assert font.decompress(GOLDEN.read_bytes()) == b"and".join(FONTS.values())


def sheet_of(columns: int, width: int, height: int) -> tuple[bytes, bytes]:
    """Return a PNG of 96 letters, dark on light and not quite of two levels, and the bits of its cells."""
    from PIL import Image

    cells = [packed(drawn(n * 5 % 61 if n % 7 else 0, width, height), width) for n in range(96)]
    rows = np.unpackbits(np.frombuffer(b"".join(cells), np.uint8).reshape(96, height, -1), axis=2)[:, :, :width]
    ink = rows.reshape(-1, columns, height, width).swapaxes(1, 2).reshape(-1, columns * width)
    grey = np.where(ink, 30, 225) + np.random.default_rng(3).integers(-25, 26, ink.shape)
    file = io.BytesIO()
    Image.fromarray(grey.astype(np.uint8)).save(file, "png")
    return file.getvalue(), b"".join(cells)


@pytest.mark.parametrize(("columns", "width", "height"), [(16, 8, 12), (12, 11, 18), (32, 6, 9)])
def test_the_grid_of_a_sheet_is_found_without_gaps_or_lines(columns, width, height):
    picture, bits = sheet_of(columns, width, height)
    made, said = font.prepared(picture)
    assert said.startswith(f"grid {width}x{height}, a PSF font")
    assert made[32:] == bits
    blob = font.compress(picture, grid="auto")
    assert font.decompress(blob) == made
    assert blob == font.compress(picture, grid=f"{width}x{height}", threshold=100)


def test_a_font_in_a_gz_is_packed_without_it():
    assert font.decompress(font.compress(gzip.compress(psf_2(12, 20)), gunzip=True)) == psf_2(12, 20)
    for wrong in (b"text", gzip.compress(b"text")[:-3], gzip.compress(b"text") * 2, gzip.compress(bytes(17 << 20))):
        with pytest.raises(BadValue, match=".gz"):
            font.compress(wrong, gunzip=True)


def test_the_command_line_says_which_grid_was_found(tmp_path):
    from kobza.cli import packed as commands

    picture, target = tmp_path / "sheet.png", tmp_path / "sheet.kbz"
    picture.write_bytes(sheet_of(16, 8, 12)[0])
    assert "grid 8x12" in commands.pack([picture], "font:grid=auto", target, model="", force=False)
    assert font.decompress(target.read_bytes())[:4] == psf.MAGIC_2
    inside = tmp_path / "font.psf.gz"
    inside.write_bytes(gzip.compress(psf_2(12, 20)))
    assert f"the {len(psf_2(12, 20))} bytes" in commands.pack(
        [inside], "font:gunzip=true", target, model="", force=True
    )
    assert font.decompress(target.read_bytes()) == psf_2(12, 20)
    with pytest.raises(BadValue, match="128 x 72 pixels cannot be cut into cells of 9 x 12"):
        commands.pack([picture], "font:grid=9x12", target, model="", force=True)
    with pytest.raises(BadValue, match="packed by itself"):
        commands.pack([picture, picture], "font:grid=8x12", target, model="", force=True)


def test_sheets_that_are_none_are_refused():
    with pytest.raises(BadValue, match="8 by 16.*auto and WIDTHxHEIGHT"):
        font.compress(sheet_of(16, 8, 12)[0], grid="8 by 16")
    with pytest.raises(BadValue, match="no picture"):
        font.compress(b"text", grid="8x16")
    with pytest.raises(OutOfRange, match="0; allowed are 1 to 255"):
        font.compress(b"text", grid="8x16", threshold=0)
    with pytest.raises(BadValue, match="no grid of 4 to 64"):
        sheet.find_grid(np.zeros((7, 3), np.uint8))
