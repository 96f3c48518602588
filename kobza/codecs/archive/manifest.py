"""Entries of an archive, and their manifest as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kobza.codecs.archive.paths import check_all, check_link, check_path
from kobza.codecs.container.errors import Corrupt, LimitExceeded
from kobza.codecs.container.fields import Cursor, varint
from kobza.codecs.container.limits import Limits

FOLDER, FILE, LINK = 0, 1, 2
PERMISSIONS = 0o777  # setuid, setgid and sticky bits are never kept
LATEST = 1 << 40  # seconds; later dates are not believed


@dataclass(frozen=True)
class Entry:
    """One thing in an archive.

    Args:
        kind: FOLDER, FILE or LINK.
        path: relative, parts joined by "/".
        mode: permission bits [0 .. 0o777].
        modified: time [seconds since 1970, whole].
        size: bytes of a file.
        sha256: of a file's bytes.
        target: of a link.
    """

    kind: int
    path: str
    mode: int = 0o644
    modified: int = 0
    size: int = 0
    sha256: bytes = b""
    target: str = ""

    def write(self) -> bytes:
        """Return the entry's bytes in the manifest."""
        path, target = self.path.encode(), self.target.encode()
        head = b"".join((bytes((self.kind,)), varint(len(path)), path, varint(self.mode), varint(self.modified)))
        if self.kind == FILE:
            return head + varint(self.size) + self.sha256
        return head + varint(len(target)) + target if self.kind == LINK else head


def write_manifest(entries: Sequence[Entry]) -> bytes:
    """Return the manifest of entries, its length in front."""
    body = varint(len(entries)) + b"".join(entry.write() for entry in entries)
    return varint(len(body)) + body


def read_manifest(body: bytes, limits: Limits) -> list[Entry]:
    """Return the entries of a manifest (without its length), every path and link checked.

    Raises:
        Corrupt, LimitExceeded, Unsafe.
    """
    cursor = Cursor(body, "the manifest")
    count = cursor.varint()
    if count > limits.entries:
        raise LimitExceeded(f"the archive declares {count} entries; the limit is {limits.entries}.")
    entries = [_read(cursor, limits) for _ in range(count)]
    if not cursor.is_done:
        raise Corrupt("there are bytes behind the manifest's last entry.")
    check_all((entry.path, entry.kind == FOLDER) for entry in entries)
    return entries


def most_bytes(limits: Limits) -> int:
    """Return the length a manifest may have [bytes]: 256 per entry allowed, or one whose path is as long as may be."""
    return limits.entries * 256 + 2 * limits.path


def _read(cursor: Cursor, limits: Limits) -> Entry:
    kind = cursor.byte()
    path = check_path(_text(cursor, limits), limits)
    mode, modified = cursor.varint(), cursor.varint()
    if kind not in (FOLDER, FILE, LINK) or mode > PERMISSIONS or modified > LATEST:
        raise Corrupt(f"the manifest's entry {path[:80]!r} has kind {kind}, mode {mode:o}, time {modified}.")
    if kind == FILE:
        return Entry(kind, path, mode, modified, cursor.varint(), cursor.take(32))
    if kind == LINK:
        return Entry(kind, path, mode, modified, target=check_link(path, _text(cursor, limits), limits))
    return Entry(kind, path, mode, modified)


def _text(cursor: Cursor, limits: Limits) -> str:
    try:
        return cursor.sized(limits.path).decode()
    except UnicodeDecodeError as error:
        raise Corrupt(f"the manifest holds a path that is not UTF-8: {error.object[:40]!r}.") from None
