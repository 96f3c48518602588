"""The codec `font` against xz, zstd and `cm` on every bitmap font that Debian installs; writes docs/fonts.md.

    python bench/fonts.py ROWS.jsonl [PATTERN]

Fonts: console-setup-linux (PSF), xfonts-base (PCF), unifont (hex, PCF, and the hex file written as BDF). Two
comparisons, in bytes: of the glyphs' bits alone (ours: the payload; peers: the smaller of what they make of the bits
as the file holds them and without padding, xz without a container, zstd without checksum and size); of whole files,
each with its container, beside the .gz as shipped. Every file is unpacked and compared. Rows in ROWS.jsonl are not
measured again, so that a run can be broken off. PATTERN, such as `*Terminus*`, chooses fonts by name.
"""

from __future__ import annotations

import gzip
import importlib
import json
import lzma
import math
import sys
import time
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from kobza.codecs import base, cm, font, native
from kobza.codecs._fonts import grids

DOCS = Path(__file__).resolve().parents[1] / "docs"
CONSOLE, MISC, UNIFONT = Path("/usr/share/consolefonts"), Path("/usr/share/fonts/X11/misc"), Path("/usr/share/unifont")
BITS, FILES = ("ours", "xz", "zstd", "cm"), ("file", "file_xz", "file_zstd", "file_cm", "gz")


def fonts(pattern: str) -> Iterator[tuple[str, str, Path, bool]]:
    """Yield set, name, path and whether it is to be written as BDF, of the fonts whose name fits."""
    found = [("console", path) for path in sorted(CONSOLE.glob("*.psf.gz"))]
    found += [("unifont" if "unifont" in path.name else "X11", path) for path in sorted(MISC.glob("*.pcf.gz"))]
    found += [("unifont", path) for path in sorted(UNIFONT.glob("*.hex"))]
    jobs = [(kind, path.name.removesuffix(".gz"), path, False) for kind, path in found]
    jobs += [(kind, f"{path.stem}.bdf", path, True) for kind, path in found if path.suffix == ".hex"]
    yield from (job for job in jobs if fnmatch(job[1], pattern))


def as_bdf(lines: bytes) -> bytes:
    """Return the font of hex lines as a BDF file, as GNU Unifont's own hex2bdf spells it."""
    glyphs = [line.split(":") for line in lines.decode("ascii").splitlines()]
    out = ["STARTFONT 2.1", "FONT -gnu-Unifont-Medium-R-Normal-Sans-16-160-75-75-c-80-iso10646-1", "SIZE 16 75 75"]
    out += ["FONTBOUNDINGBOX 16 16 0 -2", "STARTPROPERTIES 2", "FONT_ASCENT 14", "FONT_DESCENT 2", "ENDPROPERTIES"]
    out.append(f"CHARS {len(glyphs)}")
    for code, digits in glyphs:
        size = len(digits) // 16
        out += [f"STARTCHAR U+{code}", f"ENCODING {int(code, 16)}", f"SWIDTH {250 * size} 0", f"DWIDTH {4 * size} 0"]
        out += [f"BBX {4 * size} 16 0 -2", "BITMAP"]
        out += [digits[at : at + size] for at in range(0, len(digits), size)]
        out.append("ENDCHAR")
    return "\n".join([*out, "ENDFONT", ""]).encode("ascii")


def xz(data: bytes, *, is_raw: bool = False) -> int:
    """Return the size by xz -9e, its window cut to what the data fill."""
    window = 1 << max(12, len(data).bit_length())
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": window}]
    return len(lzma.compress(data, lzma.FORMAT_RAW if is_raw else lzma.FORMAT_XZ, filters=filters))


def zstd(data: bytes) -> int:
    """Return the smaller of the sizes of levels 19 and 22."""
    package: Any = importlib.import_module("zstandard")
    levels = [package.ZstdCompressor(level=n, write_content_size=False, write_checksum=False) for n in (19, 22)]
    return min(len(level.compress(data)) for level in levels)


def glyph_bytes(payload: bytes) -> int:
    """Return the bytes of a block's payload that hold its glyphs."""
    assert payload[0] == font.APART
    cursor = base.Cursor(payload)
    cursor.take(2)
    cursor.varint()
    cursor.take(cursor.varint() + 1)
    return len(payload) - cursor.at


def measure(kind: str, name: str, path: Path, is_bdf: bool) -> dict[str, Any]:
    """Return one font's row."""
    shipped = path.read_bytes()
    raw = gzip.decompress(shipped) if path.suffix == ".gz" else shipped
    raw = as_bdf(raw) if is_bdf else raw
    begin = time.process_time()
    payload = font.coder().encode(raw)
    blob = base.pack(raw, base.Coder("font", lambda _: payload), block_log2=base.fitting_block(len(raw), 24))
    middle = time.process_time()
    assert font.decompress(blob) == raw, name
    end = time.process_time()
    (piece,) = [piece for piece in font.pieces(raw) if piece.grid]
    grid = piece.grid
    assert grid and not piece.residue
    ways = [grids.packed_rows(piece.rows, grid), grids.bits_of(piece.rows, grid)]
    return {
        "font": name, "set": kind, "glyphs": len(grid.boxes), "bits": len(ways[0]),
        "ours": glyph_bytes(payload),
        "xz": min(xz(way, is_raw=True) for way in ways),
        "zstd": min(map(zstd, ways)),
        "cm": min(len(native.mixing_encode(way)) for way in ways),
        "raw": len(raw), "file": len(blob),
        "file_xz": xz(raw),
        "file_zstd": zstd(raw), "file_cm": len(cm.compress(raw)),
        "gz": len(shipped) if path.suffix == ".gz" else None,
        "pack": middle - begin, "unpack": end - middle,
    }  # fmt: skip


def rows(journal: Path, pattern: str) -> list[dict[str, Any]]:
    """Measure what the journal lacks; return the rows asked for."""
    found = {row["font"]: row for row in map(json.loads, journal.read_text().splitlines())} if journal.exists() else {}
    for kind, name, path, is_bdf in fonts(pattern):
        if name not in found:
            found[name] = measure(kind, name, path, is_bdf)
            with journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found[name]) + "\n")
    return [found[name] for _, name, _, _ in fonts(pattern)]


def summary(found: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a table: sums and ratios per set."""
    lines = [
        "| set | fonts | bits B | ours | xz -9e | zstd -22 | cm | ours / smaller of xz, zstd: mean, worst | lost |"
    ]
    lines.append("|---" * 9 + "|")
    for kind in (*dict.fromkeys(row["set"] for row in found), "all"):
        mine = [row for row in found if kind in (row["set"], "all")]
        ratios = [row["ours"] / max(1, min(row["xz"], row["zstd"])) for row in mine]
        mean = math.exp(sum(math.log(max(ratio, 1e-9)) for ratio in ratios) / len(ratios))
        sums = [f"{sum(row[key] for row in mine):,}" for key in ("bits", *BITS)]
        lost = [row["font"] for row in mine if row["ours"] >= min(row["xz"], row["zstd"])]
        said = (kind, str(len(mine)), *sums, f"{mean:.3f}, {max(ratios):.3f}", ", ".join(lost) or "none")
        lines.append(f"| {' | '.join(said)} |")
    lines += [
        "",
        "| whole files | raw B | font | xz -9e | zstd -19/-22 | cm | .gz as shipped | font loses to xz, zstd, cm |",
    ]
    lines.append("|---" * 8 + "|")
    for kind in dict.fromkeys(row["set"] for row in found):
        mine = [row for row in found if row["set"] == kind]
        sums = [f"{sum(row[key] or 0 for row in mine):,}" for key in ("raw", *FILES)]
        lost = [str(sum(row["file"] >= row[key] for row in mine)) for key in ("file_xz", "file_zstd", "file_cm")]
        lines.append(f"| {kind} | {' | '.join(sums)} | {', '.join(lost)} |")
    return lines


def details(found: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a table of all fonts."""
    lines = [
        "| font | glyphs | bits B | ours | xz | zstd | cm | raw B | font | xz | zstd | cm | .gz |",
        "|---" * 13 + "|",
    ]
    for row in found:
        cells = [f"{row[key]:,}" if row[key] is not None else "" for key in ("glyphs", "bits", *BITS, "raw", *FILES)]
        lines.append(f"| {row['font']} | {' | '.join(cells)} |")
    return lines


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Draw ours against the smaller of xz and zstd, a dot per font."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "kobza"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4))
    for kind in dict.fromkeys(row["set"] for row in found):
        mine = [row for row in found if row["set"] == kind and row["bits"]]
        ratios = [row["ours"] / max(1, min(row["xz"], row["zstd"])) for row in mine]
        axes.plot([row["bits"] for row in mine], ratios, "o", markersize=3, label=kind, rasterized=True)
    axes.axhline(1, color="0.5", linewidth=0.8)
    axes.set(xscale="log", ylim=(0, 1.05), xlabel="glyphs [bytes of bits]", ylabel="ours / smaller of xz and zstd")
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight", dpi=110)
    plt.close(figure)


def main() -> None:
    """Measure, print the sums, write the page."""
    if not native.compiled:
        sys.exit("the C extension is not built: the plain Python twins take hours")
    found = rows(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "*")
    lines = summary(found)
    print("\n".join(lines))
    seconds = sum(row["pack"] for row in found), sum(row["unpack"] for row in found)
    size = sum(row["raw"] for row in found) / 1e6
    print(f"{size:.1f} MB: packed at {size / seconds[0]:.3f}, unpacked at {size / seconds[1]:.3f} MB per CPU second")
    if len(sys.argv) > 2:
        return
    draw(found, DOCS / "pictures" / "fonts.svg")
    target = DOCS / "fonts.md"
    head = target.read_text(encoding="utf-8").partition("<!-- tables -->")[0]
    whole = [*lines, "", "![ratios](pictures/fonts.svg)", "", *details(found), ""]
    target.write_text(f"{head}<!-- tables -->\n\n" + "\n".join(whole), encoding="utf-8")


if __name__ == "__main__":
    main()
