"""docs/decoding.md."""

from pathlib import Path


def write(kept: Path, docs: Path) -> None: ...
