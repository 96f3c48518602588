"""Every error a user can cause, with the exit code of its kind.

An error says what is wrong with the value seen, what is allowed, the nearest guess, and what to do.
Exit codes: 1 ran but a check failed, 2 usage, 3 input refused, 4 resources, 5 missing extra or offline.
Anything that is not a `KobzaError` is a bug of ours (exit 70).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KobzaError(Exception):
    """Parent of all errors a user can cause or cure.

    Args:
        message: what is wrong, with the value seen and what is allowed.
        hint: what to do next; printed on a line of its own.
    """

    exit_code = 70

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.message, self.hint)


class CheckFailed(KobzaError):
    """The work ran to its end, but a check of its outcome failed (exit 1)."""

    exit_code = 1


class UsageError(KobzaError):
    """The request itself is wrong (exit 2)."""

    exit_code = 2


class UnknownName(UsageError, LookupError):
    """A name of a technique, model, text, measure or site that does not exist."""

    @classmethod
    def of(cls, kind: str, name: str, known: Iterable[str], see: str = "") -> UnknownName:
        """Build the error with the nearest names: `UnknownName.of("edit", "lowrnk", ["lowrank", "noise"])`."""
        return cls(f"no {kind} is named {name!r}.{guess(name, known)}", f"See all: {see}" if see else "")


class UnknownOption(UsageError, TypeError):
    """An option that the technique does not have."""


class NothingMatched(UsageError, LookupError):
    """A pattern that matches nothing."""


class OutOfRange(UsageError, ValueError):
    """A number outside what is allowed."""


class BadValue(UsageError, ValueError):
    """A value of the wrong type or form."""


class MissingFile(UsageError, FileNotFoundError):
    """A file or folder that is not there."""


class EmptyText(UsageError, ValueError):
    """A text without a single byte, where there is nothing to measure."""


class NotComparable(UsageError, ValueError):
    """Figures taken under different conditions; their records say which."""


class InputRefused(KobzaError, ValueError):
    """A file that is not safe or not sound (exit 3)."""

    exit_code = 3


class Unsafe(InputRefused):
    """A file that could run code or reach outside its folder."""


class Corrupt(InputRefused):
    """A file that contradicts itself or its format."""


class Truncated(Corrupt):
    """A file that ends before its header says it does."""


class NotFinite(InputRefused):
    """Weights or results that are NaN or infinite."""


class WrongTensors(InputRefused):
    """Tensors that are missing, surplus or of another shape than the configuration says."""


class WrongVocabulary(InputRefused):
    """A tokenizer that does not fit its model, or two models whose vocabularies differ."""


class OutOfResources(KobzaError):
    """Memory, disk or time did not suffice (exit 4)."""

    exit_code = 4


class CannotWrite(OutOfResources, OSError):
    """An output that cannot be written; nothing is left behind under its name."""

    def __str__(self) -> str:  # OSError has a __str__ of its own
        return KobzaError.__str__(self)


class OutOfMemory(OutOfResources, MemoryError):
    """More memory would be needed than is there or allowed."""


class OutOfTime(OutOfResources, TimeoutError):
    """A time limit was reached."""

    def __str__(self) -> str:
        return KobzaError.__str__(self)


class Unavailable(KobzaError):
    """Something optional is not installed, or the network is needed and off (exit 5)."""

    exit_code = 5


class MissingExtra(Unavailable, ImportError):
    """An optional package is not installed; the message names the command that installs it."""

    def __str__(self) -> str:
        return KobzaError.__str__(self)

    @classmethod
    def of(cls, what: str, package: str, extra: str) -> MissingExtra:
        """Build the error: `MissingExtra.of("reading Parquet", "pyarrow", "parquet")`."""
        return cls(f"{what} needs the package {package!r}, which is not installed.", f"pip install 'kobza[{extra}]'")


class Offline(Unavailable, ConnectionError):
    """The network is needed and cannot be reached, or is switched off."""

    def __str__(self) -> str:
        return KobzaError.__str__(self)


# subtle: FileNotFoundError and MissingFile share OSError's __str__, which would print "None"
MissingFile.__str__ = KobzaError.__str__  # type: ignore[method-assign]


def nearest(name: str, known: Iterable[str], n: int = 3) -> list[str]:
    """Return up to `n` of the known names that look most like `name`, best first.

    >>> nearest("lowrnk", ["lowrank", "noise", "scaling"])
    ['lowrank']
    """
    names = list(known)
    lower = {k.lower(): k for k in names}
    found = difflib.get_close_matches(name.lower(), lower, n=n, cutoff=0.55)
    return [lower[f] for f in found] or [k for k in names if name and name.lower() in k.lower()][:n]


def guess(name: str, known: Iterable[str]) -> str:
    """Return " Nearest: 'a', 'b'." or, when nothing is near, the first few names there are."""
    names = list(known)
    near = nearest(name, names)
    if near:
        return " Nearest: " + ", ".join(repr(n) for n in near) + "."
    few = ", ".join(repr(n) for n in names[:8])
    return f" There are: {few}{', ...' if len(names) > 8 else ''}." if names else ""
