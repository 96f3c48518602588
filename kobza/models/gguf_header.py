"""The header of a GGUF file, read within limits: nothing declared is believed before it is held against the length.

Source: the GGUF specification (ggml, docs/gguf.md), versions 2 and 3, little-endian. Block sizes per tensor type:
ggml.h, as the `gguf` package lists them.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kobza.core.errors import Corrupt, MissingFile, Truncated

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MOST_FIELDS = 65_536
MOST_TENSORS = 1 << 18
MOST_STRINGS = 4_000_000  # in one file; the largest vocabularies have 262,144 tokens and as many merges
LONGEST_STRING = 16 << 20  # bytes; a chat template is the longest text in real files
DEEPEST = 4  # arrays inside arrays

# number -> (name, values per block, bytes per block)
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}

# value type -> struct format
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies.

    Attributes:
        name: as in the file.
        shape: outermost dimension first, as numpy and torch count.
        type: ggml's number of the type.
        offset: of its first byte in the file.
        nbytes: its size in the file.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    nbytes: int

    @property
    def type_name(self) -> str:
        return TYPES[self.type][0]


@dataclass(frozen=True)
class Header:
    """What a GGUF file says about itself.

    Attributes:
        fields: metadata by key; arrays are lists.
        tensors: by name, in the file's order.
    """

    path: Path
    version: int
    fields: dict[str, Any] = field(repr=False)
    tensors: dict[str, TensorInfo] = field(repr=False)

    @property
    def architecture(self) -> str:
        return str(self.fields["general.architecture"])


def read_header(path: str | Path) -> Header:
    """Read and check the header of a GGUF file; its weights are not touched.

    Raises:
        MissingFile: there is no such file.
        Corrupt: the header contradicts the format or itself; field and offset are named.
        Truncated: the file ends before its header says it does.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFile(f"there is no file '{path}'.")
    with open(path, "rb") as file:
        size = path.stat().st_size
        if size < 24:
            raise Truncated(f"'{path}' is not a GGUF file: it has {size} bytes, the shortest header takes 24.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return parse(data, path)


def parse(data: bytes | mmap.mmap, path: Path) -> Header:
    """Read and check the header at the beginning of `data`, at least 24 bytes long; `path` is for messages."""
    return _Reader(path, data, len(data)).header()


class _Reader:
    """A position in the mapped file. Every count is checked against what is left before anything is made of it."""

    def __init__(self, path: Path, data: bytes | mmap.mmap, size: int) -> None:
        self.path = path
        self.data = data
        self.size = size
        self.at = 0
        self.strings = 0

    def header(self) -> Header:
        version, n_tensors, n_fields = self._preamble()
        fields: dict[str, Any] = {}
        for _ in range(n_fields):
            at = self.at
            key = self.string("a key")
            if key in fields:
                raise self.corrupt(f"the key {key!r} occurs twice", at)
            fields[key] = self.value(key)
        if not isinstance(fields.get("general.architecture"), str):
            raise self.corrupt("the key 'general.architecture' is missing or not a string", 24)
        entries = self._tensor_entries(n_tensors)
        tensors = self._placed(entries, self._alignment(fields))
        return Header(self.path, version, fields, tensors)

    def _preamble(self) -> tuple[int, int, int]:
        if self.data[:4] != MAGIC:
            raise self.corrupt(f"it begins with {bytes(self.data[:4])!r} instead of {MAGIC!r}", 0)
        version, n_tensors, n_fields = struct.unpack_from("<IQQ", self.data, 4)
        if version & 0xFFFF == 0 and version:
            raise self.corrupt("it is big-endian; only little-endian files are read", 4)
        if version not in (2, 3):
            raise self.corrupt(f"version {version} is not known; versions 2 and 3 are", 4)
        self.at = 24
        # a tensor's entry takes at least 8 + 1 + 4 + 8 + 4 + 8 bytes, a field 8 + 1 + 4 + 1
        self.bounded("the number of tensors", n_tensors, 33, MOST_TENSORS, 8)
        self.bounded("the number of fields", n_fields, 14, MOST_FIELDS, 16)
        return version, n_tensors, n_fields

    def _alignment(self, fields: dict[str, Any]) -> int:
        alignment = fields.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or not 8 <= alignment <= 65_536 or alignment & (alignment - 1):
            raise self.corrupt(f"general.alignment is {alignment!r}; it must be a power of two, 8 .. 65536", 24)
        return alignment

    # -- values ------------------------------------------------------------------------------------------------
    def value(self, key: str) -> Any:
        kind = self.u32(f"the type of {key!r}")
        return self._of_kind(kind, key, 0)

    def _of_kind(self, kind: int, key: str, depth: int) -> Any:
        if kind == _STRING:
            return self.string(f"the value of {key!r}")
        if kind == _ARRAY:
            return self._array(key, depth + 1)
        form = _SCALARS.get(kind)
        if form is None:
            raise self.corrupt(f"{key!r} has the unknown value type {kind}", self.at - 4)
        at = self.take(struct.calcsize(form), f"the value of {key!r}")
        return struct.unpack_from("<" + form, self.data, at)[0]

    def _array(self, key: str, depth: int) -> list[Any]:
        if depth > DEEPEST:
            raise self.corrupt(f"{key!r} nests arrays deeper than {DEEPEST}", self.at)
        kind = self.u32(f"the element type of {key!r}")
        count = self.u64(f"the length of {key!r}")
        if kind == _STRING:
            return self._strings(key, count)
        if kind == _ARRAY:
            self.bounded(f"the length of {key!r}", count, 12, MOST_FIELDS, self.at - 8)
            self.counted(count)
            return [self._array(key, depth + 1) for _ in range(count)]
        form = _SCALARS.get(kind)
        if form is None:
            raise self.corrupt(f"{key!r} has the unknown element type {kind}", self.at - 12)
        width = struct.calcsize(form)
        self.bounded(f"the length of {key!r}", count, width, 4 * MOST_STRINGS, self.at - 8)
        at = self.take(count * width, f"the array {key!r}")
        return list(struct.unpack_from(f"<{count}{form}", self.data, at))

    def _strings(self, key: str, count: int) -> list[str]:
        self.bounded(f"the length of {key!r}", count, 8, MOST_STRINGS, self.at - 8)
        self.counted(count)
        data, at, size, unpack = self.data, self.at, self.size, _U64.unpack_from
        found: list[str] = []
        for n in range(count):  # 100,000 of them in a common file: kept tight
            end = at + 8
            if end > size:
                break
            length = unpack(data, at)[0]
            end += length
            if end > size:
                break
            try:
                found.append(data[at + 8 : end].decode())
            except UnicodeDecodeError:
                raise self.corrupt(f"element {n} of {key!r} is not UTF-8", at) from None
            at = end
        self.at = at
        if len(found) < count:
            raise self.short(f"the array {key!r} of {count} strings breaks off at element {len(found)}", at)
        return found

    def string(self, what: str) -> str:
        at = self.at
        length = self.u64(f"the length of {what}")
        if length > LONGEST_STRING:
            raise self.corrupt(f"{what} declares {length} bytes; at most {LONGEST_STRING} are allowed", at)
        begin = self.take(length, what)
        try:
            return self.data[begin : begin + length].decode()
        except UnicodeDecodeError:
            raise self.corrupt(f"{what} is not UTF-8", at) from None

    # -- tensors -----------------------------------------------------------------------------------------------
    def _tensor_entries(self, count: int) -> list[tuple[str, tuple[int, ...], int, int, int]]:
        entries, seen = [], set()
        for _ in range(count):
            at = self.at
            name = self.string("a tensor's name")
            if name in seen:
                raise self.corrupt(f"the tensor {name!r} occurs twice", at)
            seen.add(name)
            n_dims = self.u32(f"the number of dimensions of {name!r}")
            if not 1 <= n_dims <= 4:
                raise self.corrupt(f"{name!r} has {n_dims} dimensions; 1 to 4 are allowed", self.at - 4)
            dims = struct.unpack_from(f"<{n_dims}Q", self.data, self.take(8 * n_dims, f"the shape of {name!r}"))
            kind = self.u32(f"the type of {name!r}")
            offset = self.u64(f"the offset of {name!r}")
            entries.append((name, dims[::-1], kind, offset, at))
        return entries

    def _placed(
        self, entries: list[tuple[str, tuple[int, ...], int, int, int]], alignment: int
    ) -> dict[str, TensorInfo]:
        begin = -(-self.at // alignment) * alignment
        tensors = {}
        for name, shape, kind, offset, at in entries:
            nbytes = self._bytes_of(name, shape, kind, at)
            if offset % alignment:
                raise self.corrupt(f"the offset {offset} of {name!r} is not a multiple of {alignment}", at)
            if begin + offset + nbytes > self.size:
                raise self.short(f"the tensor {name!r} needs bytes {begin + offset} .. {begin + offset + nbytes}", at)
            tensors[name] = TensorInfo(name, shape, kind, begin + offset, nbytes)
        self._refuse_overlap(tensors)
        return tensors

    def _bytes_of(self, name: str, shape: tuple[int, ...], kind: int, at: int) -> int:
        if kind not in TYPES:
            raise self.corrupt(f"{name!r} has the unknown tensor type {kind}", at)
        type_name, block, block_bytes = TYPES[kind]
        values = math.prod(shape)  # Python's integers do not overflow
        if not 0 < values < 1 << 62:
            raise self.corrupt(f"{name!r} has the impossible shape {shape}", at)
        if shape[-1] % block:
            raise self.corrupt(f"{name!r} has rows of {shape[-1]}, {type_name} takes multiples of {block}", at)
        return values // block * block_bytes

    def _refuse_overlap(self, tensors: dict[str, TensorInfo]) -> None:
        end, last = 0, ""
        for info in sorted(tensors.values(), key=lambda t: t.offset):
            if info.offset < end:
                raise self.corrupt(f"the tensors {last!r} and {info.name!r} overlap", info.offset)
            end, last = info.offset + info.nbytes, info.name

    # -- the position ------------------------------------------------------------------------------------------
    def take(self, count: int, what: str) -> int:
        """Move on by `count` bytes and return where they begin."""
        at = self.at
        if count > self.size - at:
            raise self.short(f"{what} needs {count} bytes", at)
        self.at = at + count
        return at

    def u32(self, what: str) -> int:
        return int(_U32.unpack_from(self.data, self.take(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack_from(self.data, self.take(8, what))[0])

    def bounded(self, what: str, count: int, least: int, most: int, at: int) -> None:
        """Refuse a count whose elements, of `least` bytes each, cannot fit into what is left of the file."""
        if count > most:
            raise self.corrupt(f"{what} is {count}; at most {most} are allowed", at)
        if count * least > self.size - self.at:
            raise self.short(f"{what} is {count}, which takes at least {count * least} bytes", at)

    def counted(self, count: int) -> None:
        self.strings += count
        if self.strings > MOST_STRINGS:
            raise self.corrupt(f"its arrays hold more than {MOST_STRINGS} strings", self.at)

    def corrupt(self, what: str, at: int) -> Corrupt:
        return Corrupt(f"'{self.path}' is not a sound GGUF file: {what} (at byte {at} of {self.size}).", _ASK)

    def short(self, what: str, at: int) -> Truncated:
        return Truncated(f"'{self.path}' is cut off: {what} (at byte {at}), but the file has {self.size}.", _ASK)


_ASK = "Fetch the file again and compare its size or SHA-256 with the source's."
