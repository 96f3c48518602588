"""What can be wrong with a packed file. `Corrupt` and `Truncated` are the ones of `core.errors`."""

from __future__ import annotations

from kobza.core.errors import Corrupt, InputRefused, OutOfResources, Truncated, Unavailable

__all__ = [
    "BadMagic",
    "Corrupt",
    "LimitExceeded",
    "ModelMismatch",
    "ModelMissing",
    "NotReproducible",
    "Truncated",
    "UnknownCodec",
]


class BadMagic(Corrupt):
    """The first bytes are not those of a .kbz file, or were damaged by a transfer in text mode (exit 3)."""


class LimitExceeded(OutOfResources):
    """Unpacking would need more bytes, memory, entries or depth than is allowed (exit 4)."""


class UnknownCodec(InputRefused):
    """The file names a codec, a codec version or a format version that is not known here (exit 3)."""


class ModelMissing(Unavailable):
    """The file was packed with a model or vocabulary that was not handed in (exit 5)."""


class ModelMismatch(InputRefused):
    """The model or vocabulary handed in is not the one that packed the file (exit 3)."""


class NotReproducible(InputRefused):
    """The file was packed by arithmetic that this machine or installation does not repeat (exit 3)."""
