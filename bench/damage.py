"""Damage to packed files: cut at every byte and random corruptions: what came out, how long, how much memory.

    python bench/damage.py [corruptions per codec, 10000] [codec ...] [--part 1/4]

A corruption changes, replaces, removes, doubles or inserts one to four bytes. Wanted: never other bytes than went in,
no error but ours, no long call, no memory beyond the limits; ends with 1 otherwise. Codecs that need a model get one
made of counted pairs, in numpy; the picture codecs get a picture. `zpaq` starts its program twice for each file, and
about one damaged archive in 130 keeps it busy until its time is over, which is made shorter here; still it takes some
five minutes: --part takes every n-th file only, so that a run can be split; the tables of the parts add up.
"""

from __future__ import annotations

import argparse
import random
import resource
import struct
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kobza.cli.supply import Supply
from kobza.codecs import base, native, zpaq
from kobza.core import techniques
from kobza.core.errors import KobzaError, MissingExtra
from kobza.core.table import Table

TEXT = "Реве та стогне Дніпр широкий, сердитий вітер завива.\r\n".encode() * 5 + b"\xff<s>\0"
FONT = struct.pack("<4s7I", b"\x72\xb5\x4a\x86", 0, 32, 0, 24, 9, 9, 8) + bytes(
    n * n * 7 >> 3 & 126 for n in range(24 * 9)
)
SEED = 20261127
PICTURE = b"P5 24 24 255\n" + bytes((x * y + 7 * (x ^ y)) % 256 for y in range(24) for x in range(24))
CONTENT = {"font": FONT, "image": PICTURE}  # what a codec packs, where it is not TEXT


class Bytes:
    """A vocabulary of the 256 bytes."""

    fingerprint = "bytes"

    def __len__(self) -> int:
        return 256

    def encode(self, text: str, /) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int], /) -> bytes:
        return bytes(ids)

    def bytes_of(self, id: int, /) -> bytes:
        return bytes((id,))


class Pairs:
    """A predictor that knows which byte follows which in `TEXT`."""

    fingerprint, environment, context = "pairs", "numpy", 0

    def __init__(self) -> None:
        counts = np.ones((256, 256))
        np.add.at(counts, (list(TEXT[:-1]), list(TEXT[1:])), 200)
        self.logits = np.log(counts).astype(np.float32)

    def stream_bytes(self, positions: int) -> int:
        return 256 * 36

    def restart(self, prefix: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.logits[prefix[:, -1] if prefix.shape[1] else np.zeros(len(prefix), np.int64)]

    def feed(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.logits[ids]


def damaged(blob: bytes, rng: random.Random) -> bytes:
    """Return the file with one to four bytes changed, replaced, removed, doubled or inserted."""
    at, size = rng.randrange(len(blob)), rng.randint(1, 4)
    kind = rng.randrange(5)
    if kind == 0:
        return blob[:at] + bytes((blob[at] ^ 1 << rng.randrange(8),)) + blob[at + 1 :]
    middle = (rng.randbytes(size), b"", blob[at : at + size] * 2, rng.randbytes(size))[kind - 1]
    return blob[:at] + middle + blob[at + (0 if kind == 4 else size) :]


def row(name: str, corruptions: int, part: tuple[int, int] = (1, 1)) -> dict[str, Any]:
    """Damage one codec's file in all ways; of n parts only the k-th, counted from 1."""
    module, content = techniques.load("codecs", name), CONTENT.get(name, TEXT)
    given = {key: {"predictor": Pairs(), "vocabulary": Bytes()}[key] for key in Supply("").needs(name)}
    blob = module.compress(content, **given)
    counts = {"refused": 0, "same bytes": 0, "WRONG": 0}
    longest = 0.0
    rng = random.Random(SEED)
    files = [blob[:end] for end in range(len(blob))] + [damaged(blob, rng) for _ in range(corruptions)]
    mine = range(part[0] - 1, len(files), part[1])
    for file in (files[i] for i in mine):
        begin = time.perf_counter()
        counts[_outcome(lambda f=file: module.decompress(f, **given), content)] += 1
        longest = max(longest, time.perf_counter() - begin)
    cuts = sum(i < len(blob) for i in mine)
    return {"codec": name, "file": len(blob), "cuts": cuts, "corruptions": len(mine) - cuts, **counts,
            "longest": longest, "peak": _peak()}  # fmt: skip


def _peak() -> float:
    """Most memory of this process so far, or of a program it ran [MiB]."""
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024


def _outcome(unpack: Callable[[], bytes], content: bytes) -> str:
    try:
        return "same bytes" if unpack() == content else "WRONG"
    except KobzaError:
        return "refused"


def main() -> None:
    """Print the table; end with 1 if any file gave wrong bytes, or memory passed the limit."""
    parser = argparse.ArgumentParser()
    parser.add_argument("corruptions", type=int, nargs="?", default=10_000)
    parser.add_argument("codecs", nargs="*")
    parser.add_argument("--part", default="1/1", metavar="K/N")
    asked = parser.parse_args()
    k, n = map(int, asked.part.split("/"))
    if not native.compiled:
        print("the C extension is not built: the plain Python twins are slow", file=sys.stderr)
    zpaq.SECONDS, zpaq.SLOWEST = 1, 1_000_000  # a sound archive of this size takes 0.01 s
    rows = []
    for name in asked.codecs or techniques.names("codecs"):
        try:
            rows.append(row(name, asked.corruptions, (k, n)))
        except MissingExtra as missing:
            print(missing, file=sys.stderr)
            continue
        print(rows[-1], file=sys.stderr, flush=True)
    print(Table(rows, units={"file": "B", "longest": "s", "peak": "MiB"}, title="Damage"))
    sys.exit(any(r["WRONG"] or r["peak"] > (base.Limits().memory >> 20) for r in rows))


if __name__ == "__main__":
    main()
