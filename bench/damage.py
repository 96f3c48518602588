"""Damage to packed files: cut at every byte and random corruptions: what came out, how long, how much memory.

    python bench/damage.py [corruptions per codec, 10000] [codec ...]

A corruption changes, replaces, removes, doubles or inserts one to four bytes. Wanted: never other bytes than went in,
no error but ours, no long call, no memory beyond the limits. Codecs that need a model get one made of counted pairs, in
numpy. `zpaq` starts its program twice for each file and takes minutes.
"""

from __future__ import annotations

import random
import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kobza.cli.supply import Supply
from kobza.core import techniques
from kobza.core.errors import KobzaError, MissingExtra
from kobza.core.table import Table

TEXT = "Реве та стогне Дніпр широкий, сердитий вітер завива.\r\n".encode() * 5 + b"\xff<s>\0"
SEED = 20261127


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

    fingerprint, environment = "pairs", "numpy"

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


def row(name: str, corruptions: int) -> dict[str, Any]:
    """Damage one codec's file in all ways."""
    module = techniques.load("codecs", name)
    given = {key: {"predictor": Pairs(), "vocabulary": Bytes()}[key] for key in Supply("").needs(name)}
    blob = module.compress(TEXT, **given)
    counts = {"refused": 0, "same bytes": 0, "WRONG": 0}
    longest = 0.0
    rng = random.Random(SEED)
    files = [blob[:end] for end in range(len(blob))] + [damaged(blob, rng) for _ in range(corruptions)]
    for file in files:
        begin = time.perf_counter()
        counts[_outcome(lambda f=file: module.decompress(f, **given))] += 1
        longest = max(longest, time.perf_counter() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"codec": name, "file": len(blob), "cuts": len(blob), "corruptions": corruptions, **counts,
            "longest": longest, "peak": peak}  # fmt: skip


def _outcome(unpack: Callable[[], bytes]) -> str:
    try:
        return "same bytes" if unpack() == TEXT else "WRONG"
    except KobzaError:
        return "refused"


def main() -> None:
    """Print the table; end with 1 if any file gave wrong bytes."""
    corruptions = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    rows = []
    for name in sys.argv[2:] or techniques.names("codecs"):
        try:
            rows.append(row(name, corruptions))
        except MissingExtra as missing:
            print(missing, file=sys.stderr)
        print(*rows[-1:], file=sys.stderr, flush=True)
    print(Table(rows, units={"file": "B", "longest": "s", "peak": "MiB"}, title="Damage"))
    sys.exit(any(r["WRONG"] for r in rows))


if __name__ == "__main__":
    main()
