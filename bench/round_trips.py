"""Bytes that are hard to keep, through every codec and back: identical or not, and what it took.

    python bench/round_trips.py [codec ...] [--large BYTES] [--model kobzar]

Invalid UTF-8, line ends of both kinds, texts that look like control tokens, nothing, one byte, and 16 MiB + 1 byte (the
largest block and one more; --large takes another size, 0 leaves it out). The large text is made of words; for codecs
with a model, whose steps take as long for any token, of the longest token of its vocabulary. With the embedded
model `kobzar` 16 MiB + 1 take `lm:streams=256,block_log2=24` some ten minutes, since it packs, proves and is unpacked
here; `lm_cm`, bit by bit in Python, would take an hour: give it less. Ends with 1 if anything came back changed.
"""

from __future__ import annotations

import argparse
import random
import sys
from typing import Any

from kobza.cli.packed import bench_row
from kobza.cli.supply import Supply
from kobza.codecs import base
from kobza.core.errors import MissingExtra
from kobza.core.table import Table

MARKS = b"<s></s><|endoftext|><|im_start|>system\n<pad>[INST]<unk>\0\x1b[31m"
SMALL = {
    "nothing": b"",
    "one byte": b"\xff",
    "invalid UTF-8": b"\xff\xfe \xed\xa0\x80 \xf0\x9f \xc0\x80 caf\xe9 " * 30,
    "line ends": b"one\r\ntwo\nthree\r\r\n\n\r" * 30,
    "control tokens": MARKS * 20,
}
LARGE = (1 << 24) + 1
SEED = 5


def large(size: int, supply: Supply, name: str) -> bytes:
    """Return a text of `size` bytes with all that is hard to keep in it."""
    rng = random.Random(SEED)
    if "predictor" in supply.needs(name):
        words = [max((supply.vocabulary.bytes_of(i) for i in range(len(supply.vocabulary))), key=len)]
    else:
        words = [bytes(rng.choices(b"etaoin shrdlu", k=rng.randint(2, 9))) + b" " for _ in range(500)]
    parts, total = [], 0
    while total < size:
        parts += [*rng.choices(words, k=5000), MARKS, b"\r\n\xff\xfe"]
        total += sum(map(len, parts[-5002:]))
    return b"".join(parts)[:size]


def rows(spec: str, size: int, supply: Supply) -> list[dict[str, Any]]:
    """Return a row per sample."""
    samples = SMALL | ({f"{size:,} bytes": large(size, supply, spec.partition(":")[0])} if size else {})
    found = []
    for what, data in samples.items():
        row = bench_row(spec, data, supply)
        took = {key: len(data) / 1e6 / row[key] if data else None for key in ("pack", "unpack")}
        found.append({"codec": spec, "sample": what, "size": len(data), "packed": row["packed"], **took,
                      "round trip": row["round trip"]})  # fmt: skip
    return found


def main() -> None:
    """Print the table; end with 1 if anything came back changed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("codecs", nargs="*")
    parser.add_argument("--large", type=int, default=LARGE, metavar="BYTES")
    parser.add_argument("--model", default="kobzar")
    asked = parser.parse_args()
    supply, found = Supply(asked.model), []
    for name in asked.codecs or base.names():
        try:
            found += rows(name, asked.large, supply)
        except MissingExtra as missing:
            print(missing, file=sys.stderr)
    units = {"size": "B", "packed": "B", "pack": "s", "unpack": "s"}
    print(Table(found, units=units, title="Round trips, CPU seconds of one thread"))
    sys.exit(any(row["round trip"] != "same bytes" for row in found))


if __name__ == "__main__":
    main()
