"""The fixed parts of the format as values: header, block head, end part, footer."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from kobza.codecs.container.errors import BadMagic, Corrupt, LimitExceeded, Truncated, UnknownCodec
from kobza.codecs.container.fields import (
    MOST_PARAMETER_BYTES,
    NAME,
    Cursor,
    read_parameters,
    varint,
    write_parameters,
)
from kobza.codecs.container.limits import LARGEST_BLOCK_LOG2, SMALLEST_BLOCK_LOG2
from kobza.codecs.native import crc32c

MAGIC = b"\x89KBZ\r\n\x1a\n"
FOOTER_MAGIC = b"\x1aKBZ"
FOOTER_SIZE = 4 + 32 + 4 + 4
END = 0xFF
MAJOR = 1
MOST_CODECS = 8
ARCHIVE = 1  # flag: the content is an archive (manifest and files)
WHOLE = 2  # flag, since version 1.1: one block holds all, and a digest ends the file
KNOWN_FLAGS = ARCHIVE | WHOLE
DIGEST_SIZE = 16  # bytes of a SHA-256 that end such a file; damage passes 128 bits as little as 256


@dataclass(frozen=True)
class Listed:
    """A codec as the header lists it: name, version, parameters by name."""

    name: str
    version: int = 1
    parameters: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Header:
    """What the file says before its first block.

    Args:
        block_log2: the largest raw block is 2^block_log2 bytes [10 .. 24].
        codecs: what blocks may name by number, from 1.
        raw_size: bytes in all, or None when the writer did not know.
        flags: bit 0 = archive, bit 1 = one block holds all; any other is refused.
    """

    block_log2: int
    codecs: tuple[Listed, ...]
    raw_size: int | None = None
    flags: int = 0

    @property
    def block_size(self) -> int:
        return 1 << self.block_log2

    @property
    def is_archive(self) -> bool:
        return bool(self.flags & ARCHIVE)

    @property
    def is_whole(self) -> bool:
        return bool(self.flags & WHOLE)

    def write(self) -> bytes:
        """Return the header's bytes, checksum included."""
        parts = [MAGIC, bytes((MAJOR, int(self.is_whole), self.flags, self.block_log2))]
        parts.append(varint(0 if self.raw_size is None else self.raw_size + 1))
        parts.append(bytes((len(self.codecs),)))
        for codec in self.codecs:
            raw = write_parameters(codec.parameters)
            parts += [bytes((codec.version, len(codec.name))), codec.name.encode("ascii"), varint(len(raw)), raw]
        head = b"".join(parts)
        return head + struct.pack("<I", crc32c(head))


def read_header(cursor: Cursor, head: bytes) -> Header:
    """Read what follows the magic.

    Args:
        cursor: placed behind the magic; its `seen` or data give the checksummed bytes.
        head: the magic as read.

    Raises:
        BadMagic, UnknownCodec (format version or flag), Corrupt, Truncated, LimitExceeded.
    """
    check_magic(head)
    major, _minor, flags, block_log2 = cursor.take(4)
    if major != MAJOR:
        raise UnknownCodec(f"the file has format version {major}; this kobza reads {MAJOR}.", "Install a newer kobza.")
    size = cursor.varint()
    count = cursor.byte()
    if count > MOST_CODECS:
        raise LimitExceeded(f"the header lists {count} codecs; the format allows {MOST_CODECS}.")
    codecs = tuple(_read_codec(cursor) for _ in range(count))
    covered = bytes(getattr(cursor, "seen", b""))
    (wanted,) = struct.unpack("<I", cursor.take(4))
    _same(crc32c(head + covered), wanted, "the header")
    # subtle: judged after the checksum, so that a flipped bit is called damage and not a newer format
    if flags & ~KNOWN_FLAGS:
        raise UnknownCodec(
            f"the file uses features {flags & ~KNOWN_FLAGS:#x} not known here.", "Install a newer kobza."
        )
    if not SMALLEST_BLOCK_LOG2 <= block_log2 <= LARGEST_BLOCK_LOG2:
        allowed = f"{SMALLEST_BLOCK_LOG2} to {LARGEST_BLOCK_LOG2}"
        raise LimitExceeded(f"the header declares blocks of 2^{block_log2} bytes; the format allows 2^{allowed}.")
    if flags & WHOLE and not 0 < size <= (1 << block_log2) + 1:
        raise Corrupt(f"the header declares {size - 1} bytes in one block of 2^{block_log2}.")
    return Header(block_log2, codecs, size - 1 if size else None, flags)


def check_magic(head: bytes) -> None:
    """Refuse anything but the magic, saying what probably happened.

    Raises:
        BadMagic, Truncated.
    """
    if head == MAGIC:
        return
    if MAGIC.startswith(head):
        raise Truncated(f"the file ends after {len(head)} bytes, inside its magic.")
    if head[1:4] == b"KBZ":
        hint = "Transfer it again as a binary file; text mode changes line ends and high bits."
        raise BadMagic(f"the first bytes {head!r} are a .kbz magic damaged by a transfer in text mode.", hint)
    raise BadMagic(f"not a .kbz file: it begins with {head!r}, not {MAGIC!r}.", "Pack one: kobza pack FILE.")


def write_block(codec: int, raw_size: int, checksum: int, payload: bytes) -> bytes:
    """Return one block: head and payload."""
    head = bytes((codec,)) + varint(raw_size) + varint(len(payload))
    return b"".join((head, struct.pack("<I", checksum), payload))


def write_whole(codec: int, payload: bytes, sha256: bytes) -> bytes:
    """Return all that follows the header of a file of one block."""
    return b"".join((bytes((codec,)), varint(len(payload)), payload, sha256[:DIGEST_SIZE]))


def head_size(raw_size: int, packed_size: int) -> int:
    """Return the bytes of a block before its payload."""
    return 1 + len(varint(raw_size)) + len(varint(packed_size)) + 4


def write_end(blocks: Sequence[tuple[int, int]]) -> bytes:
    """Return the end part: FF, and the index of (raw size, packed size) pairs."""
    return b"".join([bytes((END,)), varint(len(blocks)), *(varint(size) for pair in blocks for size in pair)])


def write_footer(end: bytes, sha256: bytes) -> bytes:
    """Return the footer that closes a file whose end part is `end`."""
    body = struct.pack("<I", len(end)) + sha256
    return body + struct.pack("<I", crc32c(body, crc32c(end))) + FOOTER_MAGIC


def read_footer(footer: bytes) -> tuple[int, bytes, int]:
    """Return (length of the end part, SHA-256, checksum) of the last bytes of a file.

    Raises:
        Truncated: these are not the last bytes of a whole file.
    """
    if len(footer) != FOOTER_SIZE or footer[-4:] != FOOTER_MAGIC:
        raise Truncated("the file has no footer: it was cut, or its writer did not finish.", "Fetch or pack it again.")
    length, sha256, checksum = struct.unpack("<I32sI", footer[:-4])
    return length, sha256, checksum


def check_footer(end: bytes, footer: bytes) -> bytes:
    """Return the SHA-256 of a footer whose checksum over itself and the end part holds."""
    length, sha256, checksum = read_footer(footer)
    _same(crc32c(footer[:36], crc32c(end)), checksum, "the index")
    if length != len(end):
        raise Corrupt(f"the footer says the index has {length} bytes; it has {len(end)}.")
    return sha256


def read_end(end: bytes, block_size: int) -> list[tuple[int, int]]:
    """Return the (raw size, packed size) pairs of an end part."""
    cursor = Cursor(end, "the index")
    if cursor.byte() != END:
        raise Corrupt("the index does not begin where the footer says.")
    count = cursor.varint()
    if count * 2 > len(end):
        raise Corrupt(f"the index declares {count} blocks in {len(end)} bytes.")
    pairs = [(cursor.varint(), cursor.varint()) for _ in range(count)]
    if not cursor.is_done or any(raw > block_size or packed > raw for raw, packed in pairs):
        raise Corrupt("the index holds sizes that the format does not allow.")
    return pairs


def _read_codec(cursor: Cursor) -> Listed:
    version = cursor.byte()
    name = cursor.name()
    parameters = read_parameters(cursor.sized(MOST_PARAMETER_BYTES), f"the parameters of {name!r}")
    assert NAME.fullmatch(name)
    return Listed(name, version, parameters)


def _same(seen: int, wanted: int, what: str) -> None:
    if seen != wanted:
        raise Corrupt(f"{what} is damaged: its checksum is {seen:08x}, the file says {wanted:08x}.")
