"""Bounded checks of files before any loader sees them: headers are held against the file's length and themselves.

A bad file ends in one error that names field and place, within two seconds and without allocating what it declares.
Source: the safetensors format description (huggingface/safetensors, README, "Format"); for GGUF see `gguf_header`.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from kobza.core.errors import Corrupt, MissingFile, Truncated, Unsafe

# bits per value
DTYPES = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64,
    "F32": 32, "I32": 32, "U32": 32,
    "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
LONGEST_HEADER = 16 << 20  # bytes; 100,000 tensors take 10 MB
LONGEST_CONFIG = 4 << 20
LONGEST_INDEX = 32 << 20
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_ASK = "Fetch the file again and compare its size or SHA-256 with the source's."


@dataclass(frozen=True)
class Entry:
    """One tensor of a safetensors header: its type, shape and the bytes [begin, end) of the data it takes."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def values(self) -> int:
        return math.prod(self.shape)


def safetensors_header(path: str | Path) -> dict[str, Entry]:
    """Read and check the header of a safetensors file.

    Returns:
        Entries by tensor name. They cover the data without holes and without overlap.

    Raises:
        MissingFile: there is no such file.
        Corrupt, Truncated: the header contradicts the format, itself or the file's length.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFile(f"there is no file '{path}'.")
    with open(path, "rb") as file:
        return read_header(file, path.stat().st_size, path)


def read_header(file: IO[bytes], size: int, path: Path) -> dict[str, Entry]:
    """Read and check the header of an opened safetensors file of `size` bytes; `path` is for messages."""
    text = _header_text(file, size, path)
    try:
        header = loads(text)
    except ValueError as error:
        raise _corrupt(path, f"its header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise _corrupt(path, f"its header is a JSON {type(header).__name__}, not an object")
    _check_metadata(path, header.pop("__metadata__", {}))
    room = size - 8 - len(text)
    entries = {name: _entry(path, name, value, room) for name, value in header.items()}
    _refuse_gaps(path, entries, room)
    return entries


def _header_text(file: IO[bytes], size: int, path: Path) -> bytes:
    """Return the header's JSON."""
    if size < 10:
        raise Truncated(f"'{path}' is not a safetensors file: it has {size} bytes, the shortest has 10.", _ASK)
    (length,) = struct.unpack("<Q", file.read(8))
    if length > size - 8:
        raise Truncated(f"'{path}' declares a header of {length} bytes, but the file has {size}.", _ASK)
    if length > LONGEST_HEADER:
        raise _corrupt(path, f"its header has {length} bytes; at most {LONGEST_HEADER} are read")
    text = file.read(length)
    if not text.startswith(b"{"):
        raise _corrupt(path, f"its header begins with {text[:1]!r} at byte 8, not with '{{'")
    return text


def _check_metadata(path: Path, metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _corrupt(path, "its '__metadata__' is not a list of texts by name")


def _entry(path: Path, name: str, value: Any, room: int) -> Entry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _corrupt(path, f"the entry of {name!r} must have dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _corrupt(path, f"{name!r} has the unknown type {dtype!r}")
    if not _are_sizes(shape) or len(shape) > 8:
        raise _corrupt(path, f"{name!r} has the impossible shape {str(shape)[:80]}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _corrupt(path, f"{name!r} has the impossible offsets {str(offsets)[:80]}")
    begin, end = offsets
    if end > room:
        raise Truncated(f"'{path}' is cut off: {name!r} ends at byte {end} of the data, which has {room}.", _ASK)
    if math.prod(shape) * DTYPES[dtype] != 8 * (end - begin):
        raise _corrupt(path, f"{name!r} of type {dtype} and shape {tuple(shape)} does not take {end - begin} bytes")
    return Entry(dtype, tuple(shape), begin, end)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(n) is int and 0 <= n < 1 << 62 for n in values)


def _refuse_gaps(path: Path, entries: dict[str, Entry], room: int) -> None:
    at, last = 0, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            how = "overlap" if entry.begin < at else "leave a hole between them"
            raise _corrupt(path, f"{last!r} and {name!r} {how} at byte {min(entry.begin, at)} of the data")
        at, last = entry.end, name
    if at != room:
        raise _corrupt(path, f"{room - at} bytes follow the last tensor")


def shards(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder: the single one, or those its index names.

    Raises:
        MissingFile: there is none, or the index names one that is absent.
        Unsafe: there are only pickles, or the index points out of the folder.
        Corrupt: the index is not one.
    """
    index = folder / INDEX
    if index.is_file():
        return _indexed(folder, index)
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    others = sorted(folder.glob("*.safetensors"))
    if len(others) == 1:
        return others
    refuse_pickles(sorted(file for file in folder.iterdir() if file.suffix in PICKLES))
    found = f" It has {len(others)} *.safetensors files; name one." if others else ""
    raise MissingFile(f"the folder '{folder}' has no weights: no {SINGLE}, no {INDEX}.{found}")


def _indexed(folder: Path, index: Path) -> list[Path]:
    weight_map = json_object(index, LONGEST_INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise Corrupt(f"'{index}' has no 'weight_map' of tensor names to files.", _ASK)
    files = beside(folder, sorted({str(name) for name in weight_map.values()}), str(index))
    _check_index(index, weight_map, files)
    return files


def beside(folder: Path, names: Sequence[str], where: str) -> list[Path]:
    """Return the files of weights that another file names, all of them safetensors in the same folder.

    Args:
        folder: where they must lie.
        names: as given by the other file.
        where: the other file, for messages.

    Raises:
        Unsafe: a name points elsewhere or at another kind of file.
        MissingFile: one is absent.
    """
    for name in names:
        if Path(name).name != name or name in ("", ".", "..") or "\\" in name or "\0" in name:
            raise Unsafe(
                f"'{where}' names {name!r}, which is not a file beside it.", "Weights lie in the model's folder."
            )
        if not name.endswith(".safetensors"):
            raise Unsafe(f"'{where}' names {name!r}; only *.safetensors files are read.")
        if not (folder / name).is_file():
            raise MissingFile(f"'{where}' names the file '{name}', which is not in '{folder}'.", "Fetch all of them.")
    return [folder / name for name in names]


def _check_index(index: Path, weight_map: dict[str, Any], files: Sequence[Path]) -> None:
    there = {(name, file.name) for file in files for name in safetensors_header(file)}
    named = {(name, str(file)) for name, file in weight_map.items()}
    if there != named:
        odd = sorted(named - there)[:1] or sorted(there - named)[:1]
        raise Corrupt(f"'{index}' and its files disagree about {len(named ^ there)} tensors, e.g. {odd[0]}.", _ASK)


def refuse_pickles(files: Sequence[Path]) -> None:
    """Raise if there are any: a pickle can run code when it is read.

    Raises:
        Unsafe: names the file and how to convert it.
    """
    if files:
        raise Unsafe(
            f"'{files[0]}' is a pickle, which can run any code when it is read; kobza reads safetensors and GGUF.",
            "Take the model's safetensors files; or, if you trust the file, convert it once: "
            "kobza.open(..., convert_pickle=True).save('folder')",
        )


def json_object(path: Path, limit: int = LONGEST_CONFIG) -> dict[str, Any]:
    """Read a JSON object from a file of at most `limit` bytes.

    Raises:
        MissingFile, Corrupt: there is none, it is too large, not JSON, not an object, or has a key twice.
    """
    if not path.is_file():
        raise MissingFile(f"there is no file '{path}'.")
    size = path.stat().st_size
    if size > limit:
        raise Corrupt(f"'{path}' has {size} bytes; a file of its kind may have {limit}.")
    try:
        value = loads(path.read_bytes())
    except ValueError as error:
        raise Corrupt(f"'{path}' is not sound JSON: {error}.") from None
    if not isinstance(value, dict):
        raise Corrupt(f"'{path}' must hold one JSON object, not {type(value).__name__}.")
    return value


def loads(text: bytes) -> Any:
    """Parse JSON strictly: no key twice, no NaN or infinity, no depth that exhausts the stack.

    Raises:
        ValueError: with the reason.
    """
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 at byte {error.start}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} occurs twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _corrupt(path: Path, what: str) -> Corrupt:
    return Corrupt(f"'{path}' is not a sound safetensors file: {what}.", _ASK)
