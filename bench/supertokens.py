"""Supertokens against plain byte pair encoding of equal size, held out, by domain.

    python bench/supertokens.py            # KOBZA_DATA names the folder of texts

The lengths of chunks of words were chosen on Shakespeare; the other texts were not looked at for it, so they are its
test. On them other lengths are tried as well. Each text is cut once: its beginning trains, what follows is counted.
"""

from __future__ import annotations

import gzip
import os
import time
from pathlib import Path
from typing import Any

from kobza.core.table import Table
from kobza.core.texts import text
from kobza.tokens import supertokens

DATA = Path(os.environ.get("KOBZA_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data") / "text"
SIZE = 8192
OTHERS = {  # words of a chunk; the first is the published experiment of word chunks
    "1-4 falling": {(1, 1): 0.4, (2, 2): 0.3, (3, 3): 0.2, (4, 4): 0.1},
    "1-4": {(1, 4): 1.0},
    "1-12": {(1, 12): 1.0},
}


def corpora() -> list[tuple[str, str, str]]:
    """Return (domain, beginning, what follows)."""
    shakespeare = (DATA / "tinyshakespeare.txt").read_text()
    kobzar = (DATA / "kobzar.txt").read_text()
    wiki = gzip.decompress((DATA / "enwik8-first4e6.gz").read_bytes()).decode(errors="replace")
    topics, source = text("topics").string, text("source").string
    return [
        ("Shakespeare", shakespeare[:1_000_000], shakespeare[1_000_000:]),
        ("Kobzar", kobzar[:470_000], kobzar[470_000:]),
        ("enwik8[0:4e6]", wiki[:1_500_000], wiki[3_800_000:]),
        ("documentation", topics[:420_000], topics[420_000:]),
        ("Python source", source[: len(source) * 9 // 10], source[len(source) * 9 // 10 :]),
    ]


def rows(domain: str, train: str, test: str) -> list[dict[str, Any]]:
    """Return a row per vocabulary of one domain."""
    found = [{"domain": domain, **row} for row in supertokens.gains(train, test, size=SIZE)]
    if domain == "enwik8[0:4e6]":
        return found
    for name, lengths in OTHERS.items():
        other = supertokens.train(train, size=SIZE, lengths=lengths, name=f"chunks of words, {name}")
        row = supertokens._gain(other, test.encode())
        found.append({"domain": domain, **row, "fewer tokens": 1 - row["tokens"] / found[0]["tokens"]})
    return found


def main() -> None:
    """Print a table per domain as it is ready."""
    for domain, train, test in corpora():
        begin = time.process_time()
        table = Table(
            rows(domain, train, test), units={"bytes a token": "B"}, title=f"{domain}, {SIZE:,} ids, held out"
        )
        sizes = f"{len(train.encode()):,} bytes train, {len(test.encode()):,} test"
        table.note = f"{sizes}; {time.process_time() - begin:.0f} CPU s."
        print(table, flush=True)
        print(flush=True)


if __name__ == "__main__":
    main()
