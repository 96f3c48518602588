"""Supertokens against plain byte pair encoding of equal size, held out, by domain.

    python bench/supertokens.py [DOMAIN ...]            # KOBZA_DATA names the folder of texts

Chunks of 1 to 6 words were first chosen on Shakespeare; on texts that were not looked at for it (documentation, Python)
1 to 4 is better, and became the default. Wikipedia had no part in either choice. Each text is cut once: its beginning
trains, what follows is counted.
"""

from __future__ import annotations

import gzip
import os
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

from kobza.core.table import Table
from kobza.core.texts import text
from kobza.tokens import supertokens

DATA = Path(os.environ.get("KOBZA_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data") / "text"
SIZE = 8192
SMALL = {"documentation": 4096}  # a shorter text, whose plain pairs do not suffice for more
OTHERS = {  # words of a chunk; the first is the published experiment of word chunks
    "1-4 falling": {(1, 1): 0.4, (2, 2): 0.3, (3, 3): 0.2, (4, 4): 0.1},
    "1-6": {(1, 6): 1.0},
    "1-12": {(1, 12): 1.0},
}


def corpora() -> list[tuple[str, str, str]]:
    """Return (domain, beginning, what follows)."""
    shakespeare = (DATA / "tinyshakespeare.txt").read_text()
    kobzar = (DATA / "kobzar.txt").read_text()
    wiki = gzip.decompress((DATA / "enwik8-first4e6.gz").read_bytes()).decode(errors="replace")
    topics, source = text("topics").string, _standard_library(1_700_000)
    return [
        ("Shakespeare", shakespeare[:1_000_000], shakespeare[1_000_000:]),
        ("Kobzar", kobzar[:470_000], kobzar[470_000:]),
        ("enwik8[0:4e6]", wiki[:1_500_000], wiki[3_800_000:]),
        ("documentation", topics[:420_000], topics[420_000:]),
        ("Python source", source[:1_500_000], source[1_500_000:]),
    ]


def _standard_library(size: int) -> str:
    """Return the beginning of Python's own source files, in the order of their names."""
    parts, length = [], 0
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        parts.append(file.read_text(encoding="utf-8", errors="replace"))
        length += len(parts[-1])
        if length > size:
            break
    return "".join(parts)[:size]


def rows(domain: str, train: str, test: str) -> list[dict[str, Any]]:
    """Return a row per vocabulary of one domain."""
    size = SMALL.get(domain, SIZE)
    found = [{"domain": domain, **row} for row in supertokens.gains(train, test, size=size)]
    for name, lengths in OTHERS.items():
        other = supertokens.train(train, size=size, lengths=lengths, name=f"chunks of words, {name}")
        row = supertokens._gain(other, test.encode())
        found.append({"domain": domain, **row, "fewer tokens": 1 - row["tokens"] / found[0]["tokens"]})
    return found


def main() -> None:
    """Print a table per domain as it is ready."""
    for domain, train, test in corpora():
        if sys.argv[1:] and domain not in sys.argv[1:]:
            continue
        begin = time.process_time()
        table = Table(
            rows(domain, train, test),
            units={"bytes a token": "B"},
            title=f"{domain}, {SMALL.get(domain, SIZE):,} ids, held out",
        )
        sizes = f"{len(train.encode()):,} bytes train, {len(test.encode()):,} test"
        table.note = f"{sizes}; {time.process_time() - begin:.0f} CPU s."
        print(table, flush=True)
        print(flush=True)


if __name__ == "__main__":
    main()
