"""Small fields of the format: varints, named parameters, exact reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import IO

from kobza.codecs.container.errors import Corrupt, LimitExceeded, Truncated

NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
MOST_PARAMETERS = 32  # per codec; a limit of the format
MOST_PARAMETER_BYTES = 1 << 20  # per codec; room for a table of 150,000 ranks
LARGEST = (1 << 64) - 1


def varint(value: int) -> bytes:
    """Return `value` [0 .. 2^64 - 1] as LEB128 in its shortest form: 300 -> b'\\xac\\x02'."""
    if value < 128:
        return bytes((value,))
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


class Cursor:
    """Bytes read front to back; every read past the end is `Truncated`.

    Args:
        data: the bytes.
        what: what they are, for the message.
    """

    def __init__(self, data: bytes, what: str = "the file") -> None:
        self.data, self.at, self.what = data, 0, what

    def take(self, n: int) -> bytes:
        """Return the next `n` bytes."""
        if n > len(self.data) - self.at:
            left = len(self.data) - self.at
            raise Truncated(f"{self.what} ends too early: {n} bytes are needed at offset {self.at}, {left} are left.")
        self.at += n
        return self.data[self.at - n : self.at]

    def byte(self) -> int:
        """Return the next byte as a number."""
        return self.take(1)[0]

    def varint(self) -> int:
        """Return the next varint; longer than its shortest form or above 2^64 - 1 is `Corrupt`."""
        byte = self.take(1)[0]
        if byte < 128:
            return byte
        value, shift = byte & 127, 7
        while True:
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                break
            shift += 7
            if shift > 63:
                raise Corrupt(f"{self.what} holds a number above 2^64 - 1 at offset {self.at}.")
        if value > LARGEST or not byte:
            raise Corrupt(f"{self.what} holds a number that is not in its shortest form at offset {self.at}.")
        return value

    def name(self) -> str:
        """Return the next name: u8 length and ASCII letters, digits, underscores."""
        raw = self.take(self.byte())
        text = raw.decode("ascii", errors="replace")
        if not NAME.fullmatch(text):
            raise Corrupt(f"{self.what} holds the name {text!r}; allowed are a-z, 0-9 and _, at most 32.")
        return text

    def sized(self, most: int) -> bytes:
        """Return a varint length and that many bytes, refusing more than `most`."""
        length = self.varint()
        if length > most:
            raise LimitExceeded(f"{self.what} declares {length} bytes in one field; the format allows {most}.")
        return self.take(length)

    @property
    def is_done(self) -> bool:
        return self.at == len(self.data)


class FileCursor(Cursor):
    """The same reads from a binary file object, which need not be seekable.

    Attributes:
        seen: everything taken since the last `forget()`, for checksums over fields.
    """

    def __init__(self, file: IO[bytes], what: str = "the file") -> None:
        super().__init__(b"", what)
        self.file = file
        self.seen = bytearray()

    def take(self, n: int) -> bytes:
        """Return the next `n` bytes of the file."""
        data = self.file.read(n)
        if len(data) != n:
            data = exactly(self.file, n, self.what, self.at, data)
        self.at += n
        self.seen += data
        return data

    def forget(self) -> None:
        """Start a new stretch of `seen`."""
        self.seen = bytearray()


def exactly(file: IO[bytes], n: int, what: str = "the file", at: int = 0, begun: bytes = b"") -> bytes:
    """Read exactly `n` bytes, of which `begun` were read already, or raise `Truncated`."""
    data = begun + at_most(file, n - len(begun))
    if len(data) < n:
        raise Truncated(f"{what} ends too early: {n} bytes are needed at offset {at}, {len(data)} are left.")
    return data


def at_most(file: IO[bytes], n: int) -> bytes:
    """Read `n` bytes or, where the file ends, fewer; a short read (a pipe) is continued."""
    data = file.read(n)
    if len(data) == n or not data:
        return data
    parts = [data]
    while n := n - len(parts[-1]):
        data = file.read(n)
        if not data:
            break
        parts.append(data)
    return b"".join(parts)


def write_parameters(parameters: Mapping[str, bytes]) -> bytes:
    """Return named values as bytes, names ascending.

    >>> write_parameters({"second": b"zlib"})
    b'\\x06second\\x04zlib'
    """
    parts = []
    for name, value in sorted(parameters.items()):
        if not NAME.fullmatch(name):
            raise ValueError(f"parameter name {name!r}")
        parts += [bytes((len(name),)), name.encode("ascii"), varint(len(value)), value]
    raw = b"".join(parts)
    if len(raw) > MOST_PARAMETER_BYTES or len(parameters) > MOST_PARAMETERS:
        raise LimitExceeded(
            f"the parameters of a codec take {len(raw)} bytes in {len(parameters)} fields; "
            f"the format allows {MOST_PARAMETER_BYTES} bytes in {MOST_PARAMETERS}."
        )
    return raw


def read_parameters(raw: bytes, what: str = "the parameters") -> dict[str, bytes]:
    """Return the named values of `write_parameters`; twice the same name or a wrong order is `Corrupt`."""
    cursor = Cursor(raw, what)
    found: dict[str, bytes] = {}
    last = ""
    while not cursor.is_done:
        name = cursor.name()
        if name <= last:
            raise Corrupt(f"{what} hold {name!r} after {last!r}; names must ascend.")
        found[name] = cursor.sized(MOST_PARAMETER_BYTES)
        last = name
        if len(found) > MOST_PARAMETERS:
            raise LimitExceeded(f"{what} hold more than {MOST_PARAMETERS} fields.")
    return found
