"""Small models on disk, and a writer of small GGUF files, right or wrong in any place, as bytes."""

import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

STRING, ARRAY = 8, 9
FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def string(text: str | bytes, length: int | None = None) -> bytes:
    """Length and bytes; `length` lies about them."""
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data) if length is None else length) + data


def value(kind: int, content: Any) -> bytes:
    """A value of a field; arrays are given as (element kind, list)."""
    if kind == STRING:
        return string(content)
    if kind == ARRAY:
        element, items = content
        return struct.pack("<IQ", element, len(items)) + b"".join(value(element, item) for item in items)
    return struct.pack("<" + FORMS[kind], content)


def field(key: str | bytes, kind: int, content: Any) -> bytes:
    """One entry of the metadata."""
    return string(key) + struct.pack("<I", kind) + (content if isinstance(content, bytes) else value(kind, content))


def entry(name: str | bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    """One entry of the list of tensors; `shape` as in the file, innermost first."""
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


ARCHITECTURE = field("general.architecture", STRING, "llama")


def gguf(
    fields: tuple[bytes, ...] = (ARCHITECTURE,),
    tensors: tuple[bytes, ...] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_tensors: int | None = None,
    n_fields: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file; counts may lie."""
    counts = (
        len(tensors) if n_tensors is None else n_tensors,
        len(fields) if n_fields is None else n_fields,
    )
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(fields) + b"".join(tensors)
    return head + b"\0" * (-len(head) % alignment) + data


class Writer:
    """The functions above, for tests that ask for the fixture."""

    string = staticmethod(string)
    value = staticmethod(value)
    field = staticmethod(field)
    entry = staticmethod(entry)
    gguf = staticmethod(gguf)
    STRING, ARRAY, ARCHITECTURE = STRING, ARRAY, ARCHITECTURE

    def small(self) -> bytes:
        """A sound file with fields of every kind and three tensors, under 1.5 kB."""
        scalars = [field(f"test.{form}", kind, 1) for kind, form in FORMS.items()]
        tokens = field("tokenizer.ggml.tokens", ARRAY, (STRING, ["<s>", "a", "б", " c"]))
        nested = field("test.nested", ARRAY, (ARRAY, [(5, [1, -2]), (STRING, ["x"])]))
        fields = (ARCHITECTURE, *scalars, tokens, nested, field("general.alignment", 4, 32))
        tensors = (entry("a", (8, 4), 0, 0), entry("b", (32,), 3, 128), entry("c", (4,), 1, 160))
        return gguf(fields, tensors, bytes(range(168)))


@pytest.fixture
def writer() -> Writer:
    """The writer."""
    return Writer()


@pytest.fixture
def put(tmp_path: Path) -> Callable[[bytes], Path]:
    """Write bytes to a file and return its path."""

    def write(data: bytes, name: str = "model.gguf") -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


@pytest.fixture
def write() -> Callable[..., Path]:
    """Write a tiny model into a folder as transformers does, and return the folder."""

    def written(folder: Path, family: str = "llama", **options: Any) -> Path:
        from kobza.models.building import quiet
        from kobza.models.tiny import tiny

        model = tiny(family, **options)
        with quiet():
            model.module.save_pretrained(folder)
        model.tokenizer.save(folder)
        return folder

    return written


@pytest.fixture
def folder(tmp_path: Path, write: Callable[..., Path]) -> Path:
    """A small Llama on disk."""
    return write(tmp_path / "model")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to connect fails the test."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a connection was attempted")

    monkeypatch.setattr(socket.socket, "connect", refuse)
