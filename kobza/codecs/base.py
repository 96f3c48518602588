"""What every codec stands on: the container, its errors and limits, and how a codec module looks.

A codec is a module of this room that gives

    compress(data, *, ...) -> bytes      a whole .kbz file; options documented as everywhere
    decompress(blob) -> bytes            `base.unpack`: any .kbz file says itself which codec it needs
    coder(data=b"", *, ...) -> Coder     the same options, for writing block by block; `data` is a sample to learn from
    decoder(parameters, supply)          -> function (payload, raw size) -> raw block; must not exceed raw size
    memory(size, parameters) -> int      working memory [bytes] to decode a block, from the header alone
    BLOCK_LOG2, VERSION                  block size it likes; version of its payload format

The container checks and bounds everything around it, so that a codec only turns one block into another.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol

from kobza.codecs.container.coders import Coder, Decode, Encode, decoder, load, memory, names
from kobza.codecs.container.errors import (
    BadMagic,
    Corrupt,
    LimitExceeded,
    ModelMismatch,
    ModelMissing,
    NotReproducible,
    Truncated,
    UnknownCodec,
)
from kobza.codecs.container.fields import Cursor, read_parameters, varint, write_parameters
from kobza.codecs.container.layout import Header
from kobza.codecs.container.limits import Limits
from kobza.codecs.container.reading import Block, Reader, unpack
from kobza.codecs.container.writing import Writer, pack
from kobza.core.errors import BadValue, MissingExtra, OutOfRange, guess

__all__ = [
    "BadMagic",
    "Block",
    "Coder",
    "Corrupt",
    "Cursor",
    "Decode",
    "Encode",
    "Header",
    "LimitExceeded",
    "Limits",
    "ModelMismatch",
    "ModelMissing",
    "NotReproducible",
    "Reader",
    "Truncated",
    "UnknownCodec",
    "Writer",
    "check_choice",
    "check_range",
    "decoder",
    "fitting_block",
    "inflate",
    "load",
    "memory",
    "names",
    "pack",
    "package",
    "read_parameters",
    "stage",
    "stage_decoder",
    "stage_memory",
    "unpack",
    "varint",
    "write_parameters",
]

# codecs that may stand behind another: bytes to bytes, no parameters, nothing to be supplied
STAGES = ("store", "zlib", "bz2", "lzma", "zstd", "brotli", "lz4", "ulz", "cm")


class Expander(Protocol):
    """The decompressor objects of zlib, bz2 and lzma."""

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...


def inflate(expander: Expander, payload: bytes, size: int) -> bytes:
    """Return exactly `size` bytes of a payload; one byte more stops it.

    Raises:
        ValueError: the payload gives another number of bytes, or something follows it.
    """
    raw = expander.decompress(payload, size + 1)
    if len(raw) != size or not expander.eof or expander.unused_data:
        raise ValueError(f"the payload does not give exactly {size} bytes")
    return raw


def package(name: str, codec: str) -> Any:
    """Import the optional package a codec needs.

    Raises:
        MissingExtra: it is not installed; the message names the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingExtra.of(f"codec {codec!r}", name.partition(".")[0], "codecs") from None


def check_range(what: str, value: int, low: int, high: int) -> int:
    """Return `value` if it lies in [low, high].

    Raises:
        OutOfRange: it does not; the message names the value and both ends.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadValue(f"{what} is {value!r}; a whole number is needed.")
    if not low <= value <= high:
        raise OutOfRange(f"{what} is {value}; allowed are {low} to {high}.")
    return value


def check_choice(what: str, value: str, known: tuple[str, ...]) -> str:
    """Return `value` if it is one of `known`.

    Raises:
        BadValue: it is not; the nearest are named.
    """
    if value not in known:
        raise BadValue(f"{what} is {value!r}.{guess(str(value), known)}")
    return value


def fitting_block(size: int, most_log2: int) -> int:
    """Return log2 of the smallest block that holds `size` bytes at once, at most `most_log2`, at least 10."""
    return max(10, min(most_log2, (max(size, 1) - 1).bit_length()))


def stage(name: str, **options: Any) -> Encode:
    """Return the block encoder of the codec `name` for use behind another codec.

    Raises:
        BadValue: the codec cannot stand behind another.
    """
    check_choice("the second stage", name, STAGES)
    made: Encode = load(name).coder(**options).encode
    return made


def stage_decoder(parameters: Mapping[str, bytes], key: str = "second") -> Decode:
    """Return the block decoder that a header's parameter `key` names.

    Raises:
        UnknownCodec: it names none that may stand there.
    """
    return decoder(_stage_name(parameters, key), 1, {}, {})


def stage_memory(size: int, parameters: Mapping[str, bytes], key: str = "second") -> int:
    """Return the working memory [bytes] of the stage that a header's parameter `key` names."""
    return memory(_stage_name(parameters, key), size, {})


def _stage_name(parameters: Mapping[str, bytes], key: str) -> str:
    name = parameters.get(key, b"").decode("ascii", errors="replace")
    if name not in STAGES:
        raise UnknownCodec(f"the file names {name!r} as a second stage; known are {', '.join(STAGES)}.")
    return name
