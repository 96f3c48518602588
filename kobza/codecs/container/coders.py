"""How the container calls a codec: a `Coder` to write with, a decoder found by name to read with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any

from kobza.codecs.container.errors import UnknownCodec
from kobza.codecs.container.fields import NAME
from kobza.core.errors import guess

Encode = Callable[[bytes], bytes]
Decode = Callable[[bytes, int], bytes]


@dataclass(frozen=True)
class Coder:
    """A codec ready to write: what the header says about it, and the function for one block.

    Args:
        name: the module of the room, which is what the file will say.
        encode: raw block -> payload. It may return anything when it cannot shrink the block: a payload that is
            not shorter is thrown away and the block stored.
        parameters: what a decoder needs, by name; goes into the header once.
        version: version of the codec's own format [1 .. 255].
        decode: the reverse, where proving a block needs more than the file (a model).
        is_proved: a block is always decoded and compared before it is written.
    """

    name: str
    encode: Encode
    parameters: Mapping[str, bytes] = field(default_factory=dict)
    version: int = 1
    decode: Decode | None = None
    is_proved: bool = False


@cache
def load(name: str) -> ModuleType:
    """Import the codec module `name`, of this room or of an installed package's entry point.

    Raises:
        UnknownCodec: no codec has that name; the nearest are listed.
    """
    known = names()
    if not NAME.fullmatch(name) or name not in known:
        hint = "It may come from a newer kobza or from a package that is not installed here."
        raise UnknownCodec(f"no codec is named {name!r}.{guess(name, known)}", hint)
    from kobza.core import techniques

    module: ModuleType = techniques.load("codecs", name)
    return module


def names() -> list[str]:
    """Return the names of all codecs, without importing them."""
    from kobza.core import techniques

    return list(techniques.names("codecs"))


def decoder(name: str, version: int, parameters: Mapping[str, bytes], supply: Mapping[str, Any]) -> Decode:
    """Return the function (payload, raw size) -> raw block of codec `name`.

    Args:
        name: codec name as the file says it.
        version: codec version as the file says it.
        parameters: the codec's parameters from the header.
        supply: what the caller hands in for codecs that need it, such as {"vocabulary": ...}.

    Raises:
        UnknownCodec: name or version are not known here.
        ModelMissing, ModelMismatch: the codec needs something of `supply` that is absent or another.
    """
    module = load(name)
    newest = getattr(module, "VERSION", 1)
    if not 1 <= version <= newest or not hasattr(module, "decoder"):
        hint = "A newer kobza reads it: pip install -U kobza."
        raise UnknownCodec(f"codec {name!r} has version {version} in this file; known here: 1 to {newest}.", hint)
    made: Decode = module.decoder(parameters, supply)
    return made


def memory(name: str, size: int, parameters: Mapping[str, bytes]) -> int:
    """Return the working memory [bytes] codec `name` needs to decode a block of `size` bytes."""
    count = getattr(load(name), "memory", None)
    return int(count(size, parameters)) if count else 4 * size


__all__ = ["Coder", "Decode", "Encode", "decoder", "load", "memory", "names"]
