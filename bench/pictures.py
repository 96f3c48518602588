"""The codec `image` against optimized PNG, WebP, JPEG XL and QOI, all without loss, on pictures that packages carry.

    python bench/pictures.py ROWS.jsonl --peers PYTHON [--only PATTERN]

Pictures: scikit-learn, scikit-image, matplotlib with four plots of it, docs/pictures. Bytes are those of whole files,
ours with its header and checksums (about 170 bytes). Rows are kept in ROWS.jsonl; those there already are not measured
again, so that a run can be broken off (all takes some minutes of CPU time). --only takes names, such as `*_large`.

The peers and the pictures need an environment of their own:

    python -m venv ENV && ENV/bin/pip install imagecodecs pyoxipng qoi matplotlib scikit-image scikit-learn

and its interpreter is given as PYTHON (ENV/bin/python).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from kobza.codecs import image, native
from kobza.core.table import Table

HERE = Path(__file__).resolve().parent
OURS = "kobza"
PEERS = ("PNG", "WebP", "JPEG XL", "QOI")


def rows(journal: Path) -> dict[str, dict[str, Any]]:
    """Return picture -> raw bytes and bytes by format, of all that was measured."""
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    if journal.is_file():
        for row in map(json.loads, journal.read_text(encoding="utf-8").splitlines()):
            found[row["picture"]] |= {"raw": row["raw"], row["format"]: row["packed"]}
    return found


def measure(journal: Path, python: str, only: str) -> set[str]:
    """Add what the journal lacks; return the names of the pictures asked for."""
    with tempfile.TemporaryDirectory() as folder:
        words = [python, HERE / "pictures_peers.py", folder, journal, HERE.parent / "docs" / "pictures", only]
        subprocess.run([str(word) for word in words], check=True)
        paths, done = sorted(Path(folder).glob("*.npy")), rows(journal)
        for path in paths:
            if OURS in done[path.stem]:
                continue
            pixels = np.load(path)
            packed = image.pack_pixels(pixels)
            assert np.array_equal(image.unpack_pixels(packed), pixels), path.stem
            row = {"picture": path.stem, "format": OURS, "raw": pixels.nbytes, "packed": len(packed)}
            with journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        return {path.stem for path in paths}


def verdict(found: dict[str, dict[str, Any]], peer: str) -> str:
    """Say on which pictures a peer is smaller than ours, and by how much ours is over it."""
    ratios = {name: row[OURS] / row[peer] for name, row in found.items() if peer in row}
    if not ratios:
        return f"{peer}: not measured"
    lost = sorted((name for name in ratios if ratios[name] > 1), key=lambda name: -ratios[name])
    shown = ", ".join(f"{name} {100 * ratios[name] - 100:+.1f} %" for name in lost) or "none"
    low, high = 100 * min(ratios.values()), 100 * max(ratios.values())
    return f"{peer}: ours takes {low:.1f} to {high:.1f} % of it, and loses on {len(lost)} of {len(ratios)}: {shown}"


def main() -> None:
    """Print the table and who loses."""
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", type=Path, metavar="ROWS.jsonl")
    parser.add_argument("--peers", required=True, metavar="PYTHON")
    parser.add_argument("--only", default="*", metavar="PATTERN")
    given = parser.parse_args()
    if not native.compiled:
        print("the C extension is not built: the plain Python twins take hours")
        return
    names = measure(given.rows, given.peers, given.only)
    found = {name: row for name, row in rows(given.rows).items() if name in names}
    shown = [
        {"picture": name, "raw": row["raw"], **{kind: row.get(kind) for kind in (OURS, *PEERS)}}
        for name, row in sorted(found.items(), key=lambda item: item[1]["raw"])
    ]
    print(Table(shown, units=dict.fromkeys(("raw", OURS, *PEERS), "B"), title="Bytes of whole files"), "", sep="\n")
    print("\n".join(verdict(found, peer) for peer in PEERS))


if __name__ == "__main__":
    main()
