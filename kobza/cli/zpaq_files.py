"""What pack, unpack, ls and verify do with .zpaq archives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kobza.codecs import base, zpaq
from kobza.core import options
from kobza.core.errors import BadValue, CannotWrite
from kobza.core.table import Table


def is_zpaq(file: Path) -> bool:
    """Whether a file is one for `zpaq`, by its name."""
    return file.suffix == zpaq.SUFFIX


def pack(files: Sequence[Path], step: options.Step, out: Path | None, *, key: str) -> str:
    """Add files to an archive as its next version and say what became of its size."""
    given = options.check(zpaq.compress, step.options, what="codec 'zpaq'")
    target = out or Path(f"{files[0].resolve().name}{zpaq.SUFFIX}")
    if not is_zpaq(target):
        raise BadValue(f"'{target}' does not end in {zpaq.SUFFIX}, by which zpaq's archives are known.")
    before = target.stat().st_size if target.exists() else 0
    links = zpaq.add(target, files, key=key, **given)
    left = f"; {len(links)} links left out, which ZPAQ does not keep" if links else ""
    return f"{before} -> {target.stat().st_size} bytes  {target}{left}"


def unpack(file: Path, out: Path | None, bounds: base.Limits, *, key: str, until: str) -> str:
    """Unpack an archive, as it was at a date, into a new folder."""
    target = out or Path(file.stem)
    if str(target) == "-":
        raise CannotWrite("an archive cannot go to standard output.", "Name a new folder: -o FOLDER.")
    entries = zpaq.extract(file, target, key=key, until=until, limits=bounds)
    return f"{len(entries)} entries, {sum(entry.size for entry in entries)} bytes  {target}"


def listing(file: Path, *, key: str, until: str, versions: bool) -> Table:
    """Return an archive's entries as a table."""
    entries = zpaq.listing(file, key=key, until=until, is_whole=versions)
    rows = [
        {
            **({"version": entry.version} if versions else {}),
            "path": entry.path,
            "kind": "folder" if entry.is_folder else "file",
            "size": None if entry.is_folder else entry.size,
            "mode": entry.mode,
            "modified": entry.modified,
        }
        for entry in entries
    ]
    return Table(rows, units={"size": "B"}, title=file.name, note=f"zpaq; {file.stat().st_size} bytes packed")


def verify(file: Path, bounds: base.Limits, *, key: str) -> str:
    """Unpack an archive to nowhere; everything wrong with it raises."""
    size = zpaq.verify(file, key=key, limits=bounds)
    return f"{file} is whole: {size} bytes come out of {file.stat().st_size}"
