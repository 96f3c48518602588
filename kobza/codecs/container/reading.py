"""Reading .kbz files: streamed, whole, or any part of them. Nothing a file declares is believed unchecked."""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from kobza.codecs.container import coders, layout
from kobza.codecs.container.errors import Corrupt, LimitExceeded
from kobza.codecs.container.fields import FileCursor, at_most, exactly
from kobza.codecs.container.limits import Limits
from kobza.codecs.native import crc32c
from kobza.core.errors import KobzaError


@dataclass(frozen=True)
class Block:
    """One block as its head says: codec number (0 stored), sizes [bytes], CRC-32C of the raw bytes.

    A block that holds all of its file has no checksum of its own.
    """

    codec: int
    raw_size: int
    packed_size: int
    checksum: int | None


class Reader:
    """A .kbz file being read.

    Args:
        file: binary file object at the beginning of the file; must be seekable only for `read_at` and `inspect`.
        limits: what unpacking may cost.
        supply: what codecs need beyond the file, such as {"vocabulary": ...}; they are given the limits with it.

    Attributes:
        header: what the file says about itself.

    Raises:
        BadMagic, Truncated, Corrupt, UnknownCodec, LimitExceeded: on opening already, from the header.
    """

    def __init__(self, file: IO[bytes], *, limits: Limits | None = None, supply: Mapping[str, Any] | None = None):
        self.file, self.limits, self.supply = file, limits or Limits(), dict(supply or {})
        self.supply["limits"] = self.limits
        head = at_most(file, len(layout.MAGIC))
        layout.check_magic(head)
        self._cursor = FileCursor(file)
        self._cursor.at = len(head)
        self.header = layout.read_header(self._cursor, head)
        self._data_at = self._cursor.at
        self._decoders: dict[int, coders.Decode] = {}
        if self.header.raw_size is not None:
            self.limits.check_output(self.header.raw_size, 1 << 63)

    def __iter__(self) -> Iterator[bytes]:
        """Yield the raw blocks in order; the file's end, index and SHA-256 are checked after the last.

        Subtle: every block yielded has passed its CRC-32C, but only the end of the iteration says that the file is
        whole; keep what you write under a temporary name until then.
        """
        if self.header.is_whole:
            yield self._all()
            return
        seen: list[tuple[int, int]] = []
        digest = hashlib.sha256()
        total = packed = 0
        while (block := self._head()) is not None:
            total += block.raw_size
            packed += block.packed_size
            self._check_total(total, packed)
            raw = self._decode(block, self._payload(block.packed_size))
            digest.update(raw)
            seen.append((block.raw_size, block.packed_size))
            yield raw
        if self.header.raw_size not in (None, total):
            raise Corrupt(f"the header declares {self.header.raw_size} bytes; the blocks hold {total}.")
        self._check_end(seen, digest.digest())

    def read(self) -> bytes:
        """Return all raw bytes, after every check has passed."""
        return b"".join(self)

    def blocks(self) -> list[Block]:
        """Return the heads of all blocks without decoding any; needs a seekable file."""
        found = []
        if self.header.is_whole:
            self._seek(self._data_at)
            return [self._only_head()]
        for offset, _, _ in self._places():
            self._seek(offset)
            block = self._head()
            assert block is not None
            found.append(block)
        return found

    def read_at(self, offset: int, size: int) -> bytes:
        """Return raw bytes [offset, offset + size), decoding only the blocks that hold them; needs a seekable file.

        The index is checked; the SHA-256 of the whole is not, only the CRC-32C of each block read. What lies in one
        block is read and checked as a whole.
        """
        if self.header.is_whole:
            self._seek(self._data_at)
            return self._all()[offset : offset + size]
        parts, begin, total, packed = [], 0, 0, 0
        for place, raw_size, _ in self._places():
            if begin < offset + size and offset < begin + raw_size:
                self._seek(place)
                block = self._head()
                if block is None or block.raw_size != raw_size:
                    raise Corrupt("the index does not agree with the blocks.")
                total, packed = total + raw_size, packed + block.packed_size
                self._check_total(total, packed)
                raw = self._decode(block, self._payload(block.packed_size))
                parts.append(raw[max(0, offset - begin) : offset + size - begin])
            begin += raw_size
        return b"".join(parts)

    def _seek(self, offset: int) -> None:
        self.file.seek(offset)
        self._cursor.at = offset

    def _check_total(self, total: int, packed: int) -> None:
        if self.header.raw_size is not None and total > self.header.raw_size:
            raise Corrupt(f"the blocks hold more than the {self.header.raw_size} bytes the header declares.")
        self.limits.check_output(total, packed)

    def _head(self) -> Block | None:
        cursor = self._cursor
        cursor.forget()
        codec = cursor.byte()
        if codec == layout.END:
            return None
        raw_size, packed_size = cursor.varint(), cursor.varint()
        (checksum,) = struct.unpack("<I", cursor.take(4))
        if raw_size > self.header.block_size:
            raise LimitExceeded(f"a block declares {raw_size} bytes; this file's limit is {self.header.block_size}.")
        if raw_size == 0:
            raise Corrupt(f"a block declares {packed_size} packed bytes for 0.")
        return self._judged(Block(codec, raw_size, packed_size, checksum))

    def _only_head(self) -> Block:
        cursor = self._cursor
        assert self.header.raw_size is not None
        return self._judged(Block(cursor.byte(), self.header.raw_size, cursor.varint(), None))

    def _judged(self, block: Block) -> Block:
        if block.codec > len(self.header.codecs):
            raise Corrupt(f"a block names codec {block.codec}; the header lists {len(self.header.codecs)}.")
        if block.packed_size > block.raw_size or (block.codec == 0 and block.packed_size != block.raw_size):
            raise Corrupt(f"a block declares {block.packed_size} packed bytes for {block.raw_size}.")
        return block

    def _all(self) -> bytes:
        """Return the bytes of the one block that holds all, after every check; the cursor stands before it."""
        block = self._only_head()
        self._check_total(block.raw_size, block.packed_size)
        raw = self._decode(block, self._payload(block.packed_size))
        self._check_digest(hashlib.sha256(raw).digest()[: layout.DIGEST_SIZE],
                           exactly(self.file, layout.DIGEST_SIZE, "the digest", self._cursor.at))  # fmt: skip
        self._check_nothing_behind(at_most(self.file, 1))
        return raw

    def _payload(self, size: int) -> bytes:
        data = exactly(self.file, size, "the file", self._cursor.at)
        self._cursor.at += size
        return data

    def _decode(self, block: Block, payload: bytes) -> bytes:
        raw = payload if block.codec == 0 else self._expand(block, payload)
        if len(raw) != block.raw_size:
            raise Corrupt(f"a block gave {len(raw)} bytes; its head declares {block.raw_size}.")
        if block.checksum is not None and (found := crc32c(raw)) != block.checksum:
            raise Corrupt(f"a block is damaged: its CRC-32C is {found:08x}, the file says {block.checksum:08x}.")
        return raw

    def _expand(self, block: Block, payload: bytes) -> bytes:
        listed = self.header.codecs[block.codec - 1]
        self.limits.check_memory(coders.memory(listed.name, block.raw_size, listed.parameters), listed.name)
        if block.codec not in self._decoders:
            made = coders.decoder(listed.name, listed.version, listed.parameters, self.supply)
            self._decoders[block.codec] = made
        try:
            return self._decoders[block.codec](payload, block.raw_size)
        except (KobzaError, MemoryError):
            raise
        except (ValueError, LookupError, ArithmeticError, EOFError) as error:
            raise Corrupt(f"codec {listed.name!r} cannot decode a block: {error}.") from error

    def _check_end(self, seen: list[tuple[int, int]], digest: bytes) -> None:
        end = layout.write_end(seen)
        found = b"\xff" + exactly(self.file, len(end) - 1, "the index", self._cursor.at)
        footer = at_most(self.file, layout.FOOTER_SIZE + 1)
        wanted = layout.check_footer(found, footer[: layout.FOOTER_SIZE])
        if found != end:
            raise Corrupt("the index does not agree with the blocks.")
        self._check_digest(digest, wanted)
        self._check_nothing_behind(footer[layout.FOOTER_SIZE :])

    def _check_digest(self, found: bytes, wanted: bytes) -> None:
        if found != wanted:
            raise Corrupt(f"the content is damaged: SHA-256 {found.hex()}, the file says {wanted.hex()}.")

    def _check_nothing_behind(self, surplus: bytes) -> None:
        if surplus:
            raise Corrupt("there are bytes behind the footer.")

    def _places(self) -> list[tuple[int, int, int]]:
        """Return (offset, raw size, packed size) of every block, from the index at the end of the file."""
        size = self.file.seek(0, io.SEEK_END)
        if size < self._data_at + layout.FOOTER_SIZE:
            layout.read_footer(b"")
        self.file.seek(size - layout.FOOTER_SIZE)
        footer = self.file.read(layout.FOOTER_SIZE)
        length = layout.read_footer(footer)[0]
        end_at = size - layout.FOOTER_SIZE - length
        if end_at < self._data_at:
            raise Corrupt(f"the footer says the index has {length} bytes; there is no room for it.")
        self.file.seek(end_at)
        end = exactly(self.file, length, "the index", end_at)
        layout.check_footer(end, footer)
        places, at = [], self._data_at
        for raw, packed in layout.read_end(end, self.header.block_size):
            places.append((at, raw, packed))
            at += layout.head_size(raw, packed) + packed
        if at != end_at:
            raise Corrupt("the index does not agree with the file's length.")
        return places


def unpack(blob: bytes, *, limits: Limits | None = None, supply: Mapping[str, Any] | None = None) -> bytes:
    """Return the bytes of a whole .kbz file in memory.

    Args:
        blob: the file.
        limits: what unpacking may cost; None takes the defaults.
        supply: what its codec needs beyond the file.

    Raises:
        BadMagic, Truncated, Corrupt, LimitExceeded, UnknownCodec, ModelMissing, ModelMismatch: see `Reader`.
    """
    return Reader(io.BytesIO(blob), limits=limits, supply=supply).read()
