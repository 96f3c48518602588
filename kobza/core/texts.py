"""Named samples of text: where they come from, their licence, and their exact bytes.

Three are always at hand, without a network: CPython's own documentation (`topics`), CPython's own source code
(`source`), and a short text of kobza's own in Ukrainian (`ukrainian`). Everything else is a file.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kobza.core.errors import BadValue, EmptyText, MissingFile, UnknownName
from kobza.core.files import sha256

SOURCE_MODULES = ("argparse", "dataclasses", "json.decoder", "heapq", "statistics", "textwrap", "tokenize")
FILE_LIMIT = 1 << 30  # bytes; a text is held in memory


@dataclass(frozen=True)
class Text:
    """A named sample.

    Attributes:
        name: how it was asked for, slice included.
        data: its bytes.
        origin: where it comes from.
        licence: under what terms it may be used.
    """

    name: str
    data: bytes
    origin: str = ""
    licence: str = ""

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the bytes in hexadecimal digits."""
        return sha256(self.data)

    @cached_property
    def string(self) -> str:
        """The bytes as UTF-8; what is not UTF-8 reads as U+FFFD."""
        return self.data.decode("utf-8", errors="replace")

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, part: slice) -> Text:
        begin, end, step = part.indices(len(self.data))
        if step != 1:
            raise BadValue(f"a text is cut without a step, got a step of {step}.")
        begin, end = _boundary(self.data, begin), _boundary(self.data, end)
        return Text(f"{self.name}[{begin}:{end}]", self.data[begin:end], self.origin, self.licence)


def text(spec: str | bytes | Path | Text, *, limit: int | None = None) -> Text:
    """Return the text that `spec` names.

    Args:
        spec: "topics", "source", "ukrainian", "-" (standard input), a path, bytes, or a Text; a slice of bytes may
            follow a name or path: "topics[4000:8000]". A cut moves back to the start of a UTF-8 character.
        limit: bytes to keep from the beginning [count, 1 ..].

    Raises:
        MissingFile: neither a named text nor a file.
        EmptyText: it has no bytes.
        BadValue: the slice is malformed, or the file is larger than 1 GiB.
    """
    found = _open(spec)
    if limit is not None and len(found) > limit:
        found = found[:limit]
    if not found.data:
        raise EmptyText(f"the text {found.name!r} is empty.", "Give a text of at least one byte.")
    return found


def names() -> list[str]:
    """Return the names of the texts that are always at hand."""
    return list(_NAMED)


def _open(spec: str | bytes | Path | Text) -> Text:
    if isinstance(spec, Text):
        return spec
    if isinstance(spec, bytes):
        return Text(f"bytes:{sha256(spec)[:8]}", spec)
    word = str(spec)
    cut = re.fullmatch(r"(.+)\[(\d*):(\d*)\]", word, re.DOTALL)
    if cut and not Path(word).exists():
        begin, end = (int(n) if n else None for n in cut.group(2, 3))
        return _open(cut.group(1))[begin:end]
    if word in _NAMED and not isinstance(spec, Path):
        return _NAMED[word]()
    if word == "-":
        return Text("-", sys.stdin.buffer.read(FILE_LIMIT), "standard input")
    return _file(Path(word))


def _file(path: Path) -> Text:
    try:
        size = path.stat().st_size
        if size > FILE_LIMIT:
            raise BadValue(f"the text '{path}' has {size} bytes; at most {FILE_LIMIT} are read.", "Cut it first.")
        return Text(str(path), path.read_bytes(), "file")
    except (OSError, ValueError) as error:
        if isinstance(error, BadValue):
            raise
        if isinstance(error, IsADirectoryError):
            raise BadValue(f"'{path}' is a folder, not a text.") from None
        near = UnknownName.of("text or file", str(path), _NAMED)
        raise MissingFile(near.message, "Texts at hand: " + ", ".join(_NAMED)) from None


def _topics() -> Text:
    from pydoc_data.topics import topics

    # sorted: the order in the module follows the documentation build and differs between versions
    data = "\n".join(topics[name] for name in sorted(topics)).encode()
    version = ".".join(map(str, sys.version_info[:3]))
    return Text("topics", data, f"pydoc_data.topics of CPython {version}", "PSF-2.0")


def _source() -> Text:
    import importlib.util

    parts = []
    for name in SOURCE_MODULES:
        spec = importlib.util.find_spec(name)
        if spec and spec.origin and Path(spec.origin).suffix == ".py":
            parts.append(Path(spec.origin).read_bytes())
    version = ".".join(map(str, sys.version_info[:3]))
    return Text("source", b"\n".join(parts), f"standard library of CPython {version}", "PSF-2.0")


def _ukrainian() -> Text:
    data = (Path(__file__).parent / "assets" / "ukrainian.txt").read_bytes()
    return Text("ukrainian", data, "written for kobza", "Apache-2.0")


_NAMED: dict[str, Callable[[], Text]] = {"topics": _topics, "source": _source, "ukrainian": _ukrainian}


def _boundary(data: bytes, at: int) -> int:
    # at most 3 steps: a UTF-8 character has up to 3 continuation bytes; other bytes are cut where asked
    for back in range(min(4, at + 1)):
        if at - back == len(data) or data[at - back] & 0xC0 != 0x80:
            return at - back
    return at
