"""Run the benchmarks: every script beside this one, or those named on the command line; one after the other.

    make bench
    .venv/bin/python bench/run.py opening spectrum

A script measures kobza and a peer in the same run and prints both with their ratio: absolute times belong to a
machine, ratios mostly do not. Timings are never asserted in tests.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def scripts(wanted: list[str]) -> list[Path]:
    """Return the scripts to run, sorted by name."""
    found = {path.stem: path for path in sorted(HERE.glob("*.py")) if path.stem != "run" and path.stem[0] != "_"}
    unknown = [name for name in wanted if name not in found]
    if unknown:
        sys.exit(f"no benchmark is named {unknown[0]!r}; there are: {', '.join(found)}")
    return [found[name] for name in wanted or found]


def main() -> int:
    """Run the scripts, each in a fresh interpreter, and return 1 if one failed."""
    failed = []
    for path in scripts(sys.argv[1:]):
        print(f"=== {path.stem}", flush=True)
        begin = time.monotonic()
        if subprocess.run([sys.executable, str(path)], cwd=HERE.parent).returncode:
            failed.append(path.stem)
        print(f"    ({time.monotonic() - begin:.0f} s)\n", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
