"""Files and folders into an archive."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from kobza.codecs.archive.manifest import FILE, FOLDER, LINK, PERMISSIONS, Entry, write_manifest
from kobza.codecs.archive.paths import check_all, check_link, check_path
from kobza.codecs.container.coders import Coder, load
from kobza.codecs.container.layout import ARCHIVE
from kobza.codecs.container.limits import Limits
from kobza.codecs.container.writing import Writer
from kobza.core.errors import BadValue, InputRefused, MissingFile

PIECE = 1 << 20


def pack_paths(paths: Iterable[Path], file: IO[bytes], coders: Sequence[Coder], *, block_log2: int = 20) -> list[Entry]:
    """Write the files and folders (with all in them) as an archive.

    Args:
        paths: what to pack; each is stored under its own last name.
        file: binary file object to write to.
        coders: codecs to try per block.
        block_log2: blocks of 2^block_log2 bytes.

    Returns:
        The entries, in their order.

    Raises:
        MissingFile: a path is not there.
        BadValue: a device, pipe or socket is among them.
        Unsafe: a name or a link could not be unpacked everywhere.
        InputRefused: a file changed while it was read.
    """
    found = [pair for path in paths for pair in walk(Path(path))]
    entries = [_entry(name, path) for name, path in found]
    check_all((entry.path, entry.kind == FOLDER) for entry in entries)
    manifest = write_manifest(entries)
    total = len(manifest) + sum(entry.size for entry in entries)
    # what is in an archive can be read without the model that packed it
    plain = [coder for coder in coders if coder.decode is None] or [load("zlib").coder()]
    listed = [*coders, *(coder for coder in plain if coder not in coders)]
    writer = Writer(file, listed, block_log2=block_log2, raw_size=total, flags=ARCHIVE)
    if len(plain) < len(listed):
        writer.part(manifest, plain)
    else:
        writer.write(manifest)
    for entry, (_, path) in zip(entries, found, strict=True):
        if entry.kind == FILE:
            _copy(entry, path, writer)
    writer.close()
    return entries


def walk(path: Path) -> Iterator[tuple[str, Path]]:
    """Yield (name in the archive, path) of a file, or of a folder and all in it; links are not followed.

    Raises:
        MissingFile: it is not there.
    """
    if not path.is_symlink() and not path.exists():
        raise MissingFile(f"there is no file or folder '{path}'.")
    top = path if path.is_symlink() else path.resolve()
    yield top.name, path
    if path.is_dir() and not path.is_symlink():
        for inner in sorted(path.rglob("*")):
            yield f"{top.name}/{inner.relative_to(path).as_posix()}", inner


def _entry(name: str, path: Path) -> Entry:
    limits = Limits()
    check_path(name, limits)
    found = path.lstat()
    mode, modified = found.st_mode & PERMISSIONS, max(0, int(found.st_mtime))
    if stat.S_ISLNK(found.st_mode):
        return Entry(LINK, name, mode, modified, target=check_link(name, os.readlink(path), limits))
    if stat.S_ISDIR(found.st_mode):
        return Entry(FOLDER, name, mode, modified)
    if not stat.S_ISREG(found.st_mode):
        raise BadValue(f"'{path}' is a device, pipe or socket.", "Only files, folders and links can be packed.")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    return Entry(FILE, name, mode, modified, found.st_size, digest)


def _copy(entry: Entry, path: Path, writer: Writer) -> None:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
            size += len(piece)
            writer.write(piece)
    if size != entry.size or digest.digest() != entry.sha256:
        raise InputRefused(f"'{path}' changed while it was packed.", "Pack it again when nothing writes to it.")
