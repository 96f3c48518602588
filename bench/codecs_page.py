"""Write docs/codecs.md and its pictures: every codec beside installed peers on texts, bitmap fonts and pictures.

    python bench/codecs_page.py ROWS.jsonl [PICTURES.jsonl]

Rows are kept in ROWS.jsonl; those there already are not measured again, so that a run can be broken off. The rows of
ours are those of `kobza bench`. Speeds are CPU seconds of one thread: compare within a table only. PICTURES.jsonl is
what `bench/pictures.py` keeps: whole pictures against formats for pictures.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kobza.cli.packed import bench_row
from kobza.cli.supply import Supply
from kobza.core import techniques
from kobza.core.errors import KobzaError

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
FONTS = Path("/usr/share/consolefonts")
FONT_NAMES = (
    "Lat15-VGA16",
    "Lat15-Terminus16",
    "Uni2-Fixed16",
    "Uni3-TerminusBold32x16",
    "CyrSlav-Fixed16",
    "Greek-VGA14",
)
MORE = ("ulz:level=9", "bpez:block_log2=22", "bpez:is_global=true", "bpez:second=lzma", "tok:second=lzma")
BYTES_OF_PIXELS = "a picture's pixels, row by row"
Pack = Callable[[bytes], bytes]


def inputs() -> Iterator[tuple[str, bytes, dict[str, Pack]]]:
    """Yield name, bytes and the peers that know what kind of bytes they are."""
    yield from ((name, data, {}) for name, data in _bench().texts())
    files = [FONTS / f"{name}.psf.gz" for name in FONT_NAMES]
    found = [gzip.decompress(file.read_bytes()) for file in files if file.is_file()]
    if found:
        yield f"{len(found)} console fonts (PSF)", b"".join(found), {}
    from PIL import Image
    from sklearn.datasets import load_sample_image

    for name in ("china", "flower"):
        pixels = load_sample_image(f"{name}.jpg")[100:356, 100:356]
        image = Image.fromarray(pixels)
        yield (
            f"{name}.jpg, 256 x 256 pixels",
            pixels.tobytes(),
            {
                "PNG, optimized (peer)": lambda _, i=image: _saved(i, "PNG", optimize=True),
                "WebP lossless (peer)": lambda _, i=image: _saved(i, "WEBP", lossless=True, quality=100, method=6),
            },
        )


def _saved(image: Any, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _bench() -> Any:
    """The script beside this one."""
    spec = importlib.util.spec_from_file_location("bench_codecs", HERE / "codecs.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure(journal: Path) -> list[dict[str, Any]]:
    """Measure what the journal lacks; return all rows."""
    rows = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    done = {(row["file"], row["codec"]) for row in rows}
    supply = Supply("smollm2")
    specs = [*(n for n in techniques.names("codecs") if not supply.needs(n)), *MORE]
    bench = _bench()
    with journal.open("a") as file:
        for name, data, special in inputs():
            peers = [*bench.peers(), *((who, pack, None) for who, pack in special.items())]
            jobs: list[tuple[str, Callable[[], dict[str, Any]]]] = [
                (spec, lambda s=spec, d=data: bench_row(s, d, supply)) for spec in specs
            ]
            jobs += [(pair[0], lambda p=pair, n=name, d=data: _peer(bench.row(n, d, p))) for pair in peers]
            for codec, job in jobs:
                if (name, codec) in done:
                    continue
                try:
                    row = {"file": name, "size": len(data), **job()}
                except KobzaError as error:
                    print(codec, error, file=sys.stderr)
                    continue
                rows.append(row)
                file.write(json.dumps(row) + "\n")
                file.flush()
    return rows


def _peer(row: dict[str, Any]) -> dict[str, Any]:
    back = "same bytes" if row["unpack"] else "not unpacked"
    return {key: row[key] for key in ("codec", "packed", "part", "pack", "unpack")} | {
        "memory": None,
        "round trip": back,
    }


def page(rows: list[dict[str, Any]]) -> str:
    """Return the page's tables, smallest files first."""
    text = []
    for name in dict.fromkeys(row["file"] for row in rows):
        mine = sorted((row for row in rows if row["file"] == name), key=lambda row: row["packed"])
        text += [f"## {name}, {mine[0]['size']:,} bytes", "", f"![sizes](pictures/{picture_name(name)})", ""]
        text += [
            "| codec | packed B | % | pack MB/s | unpack MB/s | memory MiB | round trip |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in mine:
            numbers = [_number(row[key]) for key in ("pack", "unpack", "memory")]
            said = (row["codec"], f"{row['packed']:,}", f"{row['part']:.2f}", *numbers, row["round trip"])
            text.append(f"| {' | '.join(said)} |")
        text.append("")
    return "\n".join(text)


FORMATS = ("kobza", "PNG", "WebP", "JPEG XL", "QOI")


def pictures(journal: Path) -> str:
    """Return the table of whole pictures, smallest first, and draw them; nothing without a journal."""
    found: dict[str, dict[str, int]] = {}
    for row in map(json.loads, journal.read_text(encoding="utf-8").splitlines()):
        found.setdefault(row["picture"], {"raw": row["raw"]})[row["format"]] = row["packed"]
    whole = dict(sorted(((n, r) for n, r in found.items() if "kobza" in r), key=lambda item: item[1]["raw"]))
    text = ["## Whole pictures, bytes", "", "![sizes](pictures/codecs-pictures.svg)", ""]
    text += ["| picture | samples B | image | PNG | WebP | JPEG XL | QOI |", "|---|---|---|---|---|---|---|"]
    for name, row in whole.items():
        text.append(f"| {name} | {' | '.join(f'{row[k]:,}' if k in row else '-' for k in ('raw', *FORMATS))} |")
    _draw_pictures(whole)
    return "\n".join([*text, ""])


def _draw_pictures(whole: dict[str, dict[str, int]]) -> None:
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(8, 5))
    for kind, mark in zip(FORMATS, "oxsd+", strict=True):
        there = [(place, 100 * row[kind] / row["PNG"]) for place, row in enumerate(whole.values()) if kind in row]
        axes.plot(*zip(*there, strict=True), mark, label=kind if kind != "kobza" else "image")
    axes.set_xticks(range(len(whole)), whole, rotation=45, ha="right", fontsize=8)
    axes.set(ylabel="bytes of the file [% of optimized PNG]", title="Whole pictures, without loss")
    axes.axhline(100, color="0.7", linewidth=0.8)
    axes.legend()
    figure.savefig(DOCS / "pictures" / "codecs-pictures.svg", metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "kobza"
    import matplotlib.pyplot as plt

    return plt


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def picture_name(name: str) -> str:
    """Return the file of a table's picture."""
    return "codecs-" + "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")[:40] + ".svg"


def draw(rows: list[dict[str, Any]]) -> None:
    """Draw size against packing speed, one picture per input."""
    plt = _pyplot()
    for name in dict.fromkeys(row["file"] for row in rows):
        figure, axes = plt.subplots(figsize=(8, 5))
        for row in (row for row in rows if row["file"] == name):
            is_peer = "(peer)" in row["codec"]
            axes.plot(row["pack"], row["part"], "x" if is_peer else "o", color="0.5" if is_peer else "#1f6f8b")
            axes.annotate(row["codec"].replace(" (peer)", ""), (row["pack"], row["part"]), fontsize=7,
                          xytext=(4, 3), textcoords="offset points")  # fmt: skip
        axes.set(xscale="log", xlabel="packing [MB per CPU second]", ylabel="packed [% of input]", title=name)
        figure.savefig(DOCS / "pictures" / picture_name(name), metadata={"Date": None}, bbox_inches="tight")
        plt.close(figure)


def main() -> None:
    """Measure, draw, and replace the tables of docs/codecs.md."""
    rows = measure(Path(sys.argv[1]))
    draw(rows)
    target = DOCS / "codecs.md"
    head, _, rest = target.read_text().partition("<!-- tables -->")
    fonts = "".join(rest.partition("## Fonts")[1:])  # written by hand
    more = pictures(Path(sys.argv[2])) if len(sys.argv) > 2 else ""
    target.write_text("\n".join(part for part in (f"{head}<!-- tables -->\n\n{page(rows)}", more, fonts) if part))


if __name__ == "__main__":
    main()
