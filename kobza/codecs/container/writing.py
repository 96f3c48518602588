"""Writing .kbz files, block by block, to any binary file object."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from typing import IO

from kobza.codecs.container.coders import Coder, decoder
from kobza.codecs.container.errors import NotReproducible
from kobza.codecs.container.layout import WHOLE, Header, Listed, write_block, write_end, write_footer, write_whole
from kobza.codecs.native import crc32c
from kobza.core.errors import OutOfRange


class Writer:
    """A .kbz file being written; memory stays at a few blocks however long the input.

    Args:
        file: binary file object; only written to, never sought.
        coders: codecs to try; each block takes whichever is shortest, and is stored if none shrinks it.
        block_log2: blocks of 2^block_log2 raw bytes [10 .. 24].
        raw_size: bytes that will be written, if known; the reader may then refuse early.
        flags: header flags (bit 0: archive; bit 1: one block will hold all, so that `raw_size` is needed).
        verify: decode every block and compare before it is written; codecs that ask for it are proved anyway.

    Raises:
        OutOfRange: block_log2 is outside what the format allows.
        NotReproducible: a block did not survive `verify`.
    """

    def __init__(
        self,
        file: IO[bytes],
        coders: Sequence[Coder],
        *,
        block_log2: int = 20,
        raw_size: int | None = None,
        flags: int = 0,
        verify: bool = False,
    ) -> None:
        if not 10 <= block_log2 <= 24:
            raise OutOfRange(f"blocks of 2^{block_log2} bytes; allowed are 2^10 to 2^24 (16 MiB).")
        self.file, self.coders, self.verify = file, tuple(coders), verify
        listed = tuple(Listed(c.name, c.version, dict(c.parameters)) for c in coders)
        self._numbers = {id(coder): i for i, coder in enumerate(self.coders, 1)}  # as the header counts them
        self.header = Header(block_log2, listed, raw_size, flags)
        self._hash = hashlib.sha256()
        self._waiting = bytearray()
        self.blocks: list[tuple[int, int]] = []
        file.write(self.header.write())

    def write(self, data: bytes) -> int:
        """Take further raw bytes; whole blocks are written at once, the rest waits."""
        self._waiting += data
        size = self.header.block_size
        at = 0
        while len(self._waiting) - at >= size:
            self._block(bytes(self._waiting[at : at + size]))
            at += size
        del self._waiting[:at]
        return len(data)

    def part(self, data: bytes, coders: Sequence[Coder]) -> None:
        """Write raw bytes in blocks of their own, by only some of the codecs.

        Args:
            data: raw bytes; what was written before ends its block.
            coders: of those this writer was made with.
        """
        self._flush()
        all_coders, self.coders = self.coders, tuple(coders)
        self.write(data)
        self._flush()
        self.coders = all_coders

    def _flush(self) -> None:
        if self._waiting:
            self._block(bytes(self._waiting))
            self._waiting.clear()

    def close(self) -> None:
        """Write the last block, the index and the footer; without this the file is not one."""
        if self.header.is_whole and not self.blocks and not self._waiting:
            self._block(b"")
        self._flush()
        written = sum(raw for raw, _ in self.blocks)
        if self.header.raw_size not in (None, written):
            raise OutOfRange(f"{self.header.raw_size} bytes were announced and {written} written.")
        if self.header.is_whole:
            return
        end = write_end(self.blocks)
        self.file.write(end + write_footer(end, self._hash.digest()))

    def _block(self, raw: bytes) -> None:
        self._hash.update(raw)
        number, payload = 0, raw
        for coder in self.coders:
            candidate = coder.encode(raw)
            if len(candidate) < len(payload):
                if self.verify or coder.is_proved:
                    self._prove(coder, candidate, raw)
                number, payload = self._numbers[id(coder)], candidate
        if self.header.is_whole:
            self.file.write(write_whole(number, payload, self._hash.digest()))
        else:
            self.file.write(write_block(number, len(raw), crc32c(raw), payload))
        self.blocks.append((len(raw), len(payload)))

    def _prove(self, coder: Coder, payload: bytes, raw: bytes) -> None:
        decode = coder.decode or decoder(coder.name, coder.version, coder.parameters, {})
        try:
            is_same = decode(payload, len(raw)) == raw
        except (ValueError, LookupError, ArithmeticError, EOFError):
            is_same = False
        if not is_same:
            message = f"codec {coder.name!r} did not give block {len(self.blocks)} back; nothing was packed."
            raise NotReproducible(message, "Pack it with another codec (cm), and please report it.")


def pack(data: bytes, *coders: Coder, block_log2: int = 20, flags: int = 0, verify: bool = False) -> bytes:
    """Return `data` as a whole .kbz file in memory.

    Args:
        data: any bytes.
        coders: codecs to try per block; none stores.
        block_log2: blocks of 2^block_log2 bytes [10 .. 24]; what fits in one takes the shorter form of file.
        flags: header flags.
        verify: decode every block before it is accepted.
    """
    file = io.BytesIO()
    raw = bytes(data)
    flags |= WHOLE * (len(raw) <= 2**block_log2)
    writer = Writer(file, coders, block_log2=block_log2, raw_size=len(raw), flags=flags, verify=verify)
    writer.write(raw)
    writer.close()
    return file.getvalue()
