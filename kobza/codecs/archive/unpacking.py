"""An archive's entries listed, and unpacked into a folder that appears whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from kobza.codecs.archive.manifest import FOLDER, LINK, Entry, most_bytes, read_manifest
from kobza.codecs.container.errors import Corrupt, LimitExceeded
from kobza.codecs.container.reading import Reader
from kobza.core.errors import BadValue
from kobza.core.files import atomic_directory


class _Content:
    """The raw bytes of a container, taken in any portions."""

    def __init__(self, reader: Reader) -> None:
        self.blocks = iter(reader)
        self.waiting = b""

    def take(self, n: int) -> Iterator[bytes]:
        """Yield pieces that are `n` bytes together."""
        while n:
            if not self.waiting:
                self.waiting = next(self.blocks, b"")
                if not self.waiting:
                    raise Corrupt(f"the archive's content ends {n} bytes before its manifest says.")
            piece, self.waiting = self.waiting[:n], self.waiting[n:]
            n -= len(piece)
            yield piece

    def varint(self) -> int:
        """Return a varint, read byte by byte."""
        value = 0
        for shift in range(0, 35, 7):
            byte = next(self.take(1))[0]
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise Corrupt("the archive's manifest declares an impossible length.")

    def finish(self) -> None:
        """Read to the end, so that the container's last checks are made; there must be nothing left."""
        if self.waiting or any(self.blocks):
            raise Corrupt("the archive's content is longer than its manifest says.")


def entries_of(reader: Reader) -> list[Entry]:
    """Return the entries of an archive; only the blocks that hold the manifest are decoded.

    Raises:
        BadValue: the file is no archive.
        Corrupt, Truncated, LimitExceeded, Unsafe: see `read_manifest`.
    """
    return _manifest(_content(reader), reader)


def unpack_into(reader: Reader, folder: Path) -> list[Entry]:
    """Unpack an archive into `folder`, which must be new or empty.

    Returns:
        The entries, in their order.

    Raises:
        BadValue: the file is no archive.
        CannotWrite: the folder is not empty, or cannot be written.
        Corrupt, Truncated, LimitExceeded, Unsafe: the archive is not sound; nothing is left behind.
    """
    content = _content(reader)
    entries = _manifest(content, reader)
    with atomic_directory(folder) as place:
        for entry in entries:
            if entry.kind != LINK:
                _make(place, entry, content)
        content.finish()
        # subtle: links come last, so that nothing was ever written through one
        for entry in entries:
            if entry.kind == LINK:
                _parent(place, entry)
                os.symlink(entry.target, place / entry.path)
        for entry in reversed(entries):
            if entry.kind != LINK:
                os.chmod(place / entry.path, entry.mode | (0o700 if entry.kind == FOLDER else 0o400))
                os.utime(place / entry.path, (entry.modified, entry.modified))
    return entries


def _content(reader: Reader) -> _Content:
    if not reader.header.is_archive:
        raise BadValue("this .kbz file holds one stream, not an archive.", "Unpack it to a file: -o NAME.")
    return _Content(reader)


def _manifest(content: _Content, reader: Reader) -> list[Entry]:
    length, most = content.varint(), most_bytes(reader.limits)
    if length > most:
        raise LimitExceeded(f"the archive declares a manifest of {length} bytes; the limit is {most}.")
    entries = read_manifest(b"".join(content.take(length)), reader.limits)
    reader.limits.check_output(sum(entry.size for entry in entries), 1 << 63)
    return entries


def _parent(place: Path, entry: Entry) -> Path:
    path = place / entry.path
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _make(place: Path, entry: Entry, content: _Content) -> None:
    path = _parent(place, entry)
    if entry.kind == FOLDER:
        path.mkdir(exist_ok=True)
        return
    with path.open("xb") as file:
        _fill(file, entry, content)


def _fill(file: IO[bytes], entry: Entry, content: _Content) -> None:
    digest = hashlib.sha256()
    for piece in content.take(entry.size):
        digest.update(piece)
        file.write(piece)
    if digest.digest() != entry.sha256:
        raise Corrupt(f"the archive's file {entry.path[:80]!r} does not have the SHA-256 its manifest says.")
