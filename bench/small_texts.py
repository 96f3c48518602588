"""Brotli on small texts of the web against codecs without a dictionary, and what its dictionary alone is worth.

    .venv/bin/python bench/small_texts.py

The beginnings, of 256 bytes to 32 kB, of style sheets, scripts and pages: kobza's own, those that installed packages
bring, pages of the standard library by pydoc; beside them prose in English and in Ukrainian. Sizes are payloads of the
coders, without the container's bytes, which are the same for all. The dictionary is isolated by a text in which every
letter stands 13 further in its alphabet: repetitions, frequencies and word lengths stay, so zlib and lzma must give
what they gave (that is checked: `turned`), but no word of a dictionary is left.
"""

from __future__ import annotations

import gzip
import importlib
import os
import pydoc
import site
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kobza.core import techniques
from kobza.core.table import Table
from kobza.core.texts import text

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("KOBZA_DATA") or ROOT.parent / "shared" / "data") / "text"
SIZES = (256, 512, 1024, 2048, 4096, 8192, 32768)
CODECS = ("brotli", "zlib", "zstd", "lzma", "cm")
MODULES = ("argparse", "heapq", "textwrap")
PLACES = 12  # of prose


def rotated(first: str, count: int) -> dict[int, int]:
    """Letters of an alphabet to the ones 13 further."""
    return {ord(first) + i: ord(first) + (i + 13) % count for i in range(count)}


TURN = rotated("a", 26) | rotated("A", 26) | rotated("а", 32) | rotated("А", 32)


def web() -> Iterator[tuple[str, bytes]]:
    """Kind and bytes of files of the web that are at hand."""
    folders = [ROOT / "kobza", *(Path(folder) for folder in site.getsitepackages())]
    for kind in ("css", "js", "svg", "html"):
        for folder in folders:
            for path in sorted(folder.rglob(f"*.{kind}")):
                yield kind, path.read_bytes()
    for name in MODULES:
        page = pydoc.html.page(name, pydoc.html.document(importlib.import_module(name), name))
        yield "html", page.encode()


def prose() -> Iterator[tuple[str, bytes]]:
    """English and Ukrainian, from several places each."""
    sources = {"English, documentation": text("topics").data}
    if (DATA / "enwik8-first4e6.gz").is_file():
        sources["English, encyclopedia"] = gzip.decompress((DATA / "enwik8-first4e6.gz").read_bytes())
        sources["Ukrainian"] = (DATA / "kobzar.txt").read_bytes()
    for kind, data in sources.items():
        for place in range(PLACES):
            part = data[place * (len(data) // PLACES) :][: 2 * max(SIZES)]
            yield kind, part[part.index(b"\n") + 1 :]  # where a line begins


def packed(name: str, data: bytes) -> int:
    """Bytes of the payload."""
    coder: Any = techniques.load("codecs", name).coder(data)
    return len(coder.encode(data))


def row(kind: str, size: int, texts: list[bytes]) -> dict[str, Any]:
    """Shares of the size, and of what brotli saves by its dictionary, over all texts of a kind."""
    cut = [data[:size].decode(errors="ignore") for data in texts]
    whole = [part.encode() for part in cut]
    other = [part.translate(TURN).encode() for part in cut]
    total = sum(map(len, whole))
    found = {name: sum(packed(name, part) for part in whole) for name in CODECS}
    turned = {name: sum(packed(name, part) for part in other) for name in CODECS[:4]}
    best = min(found["zlib"], found["zstd"], found["lzma"])
    shares = {name: 100 * value / total for name, value in found.items()}
    return {"kind": kind, "bytes": size, "texts": len(cut)} | shares | {
        "brotli less": 100 * (1 - found["brotli"] / best),
        "by dictionary": 100 * (1 - found["brotli"] / turned["brotli"]),
        "left when turned": 100 * (1 - turned["brotli"] / min(turned["zlib"], turned["zstd"], turned["lzma"])),
        "zlib turned": 100 * (turned["zlib"] / found["zlib"] - 1),
        "lzma turned": 100 * (turned["lzma"] / found["lzma"] - 1),
    }  # fmt: skip


def main() -> None:
    """Print a row per kind and size."""
    kinds: dict[str, list[bytes]] = {}
    for kind, data in (*web(), *prose()):
        kinds.setdefault(kind, []).append(data)
    kinds = {"web": [data for kind in ("css", "js", "html") for data in kinds.get(kind, [])]} | kinds
    rows = []
    for kind, texts in kinds.items():
        for size in SIZES:
            fitting = [data for data in texts if len(data) >= size]
            rows += [row(kind, size, fitting)] if fitting else []
    units = dict.fromkeys([key for key in rows[0] if key not in ("kind", "bytes", "texts")], "%")
    note = "brotli less: than the best of zlib, zstd, lzma. by dictionary: what is saved of the turned text's size."
    print(Table(rows, units=units, title="Small texts, share of their size", note=note))


if __name__ == "__main__":
    main()
