"""The entry point: words to a command, errors to exit codes.

0 done, 1 ran but a check failed, 2 usage, 3 input refused, 4 resources, 5 missing extra or offline, 70 a bug of
kobza, 130 interrupted, 143 told to end.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from kobza.cli.show import Hangup, Interrupted
from kobza.core.errors import CannotWrite, KobzaError, OutOfMemory

BUG, INTERRUPTED, TERMINATED = 70, 130, 143
NO_MEMORY = ("can't allocate memory", "not enough memory")  # how torch says it, as a RuntimeError


class Terminated(BaseException):
    """SIGTERM came: the work is put down as tidily as after Ctrl-C."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; nothing but bugs ends in a traceback."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with _terminable():
            return _run(words)
    except Hangup:
        _forget_stdout()
        return 0
    except Terminated:
        _say("terminated: what was finished is kept.")
        return TERMINATED
    except (KeyboardInterrupt, Interrupted):
        _say("interrupted: what was finished is kept; the same command goes on from there.")
        return INTERRUPTED
    except BaseException as error:  # noqa: BLE001 - the one place where every error becomes an exit code
        return _failed(error)


def _run(words: list[str]) -> int:
    from kobza.cli.app import build

    if not words:
        words = ["--help"]
    found: Any = build().main(args=words, prog_name="kobza", standalone_mode=False)
    return found if isinstance(found, int) else 0


def _failed(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    known = _as_ours(error)
    if known is not None:
        _say(text_of(known))
        return known.exit_code
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # of the argument parser
        _say(_usage(error))
        return 2
    if type(error).__name__ == "Abort":
        return INTERRUPTED
    traceback.print_exception(error)
    _say(f"This is a bug of kobza {_version()}: please report the lines above, with the command you gave.")
    return BUG


def text_of(error: KobzaError) -> str:
    """Return the error as one to four lines: its kind, the message, and the hint below it.

    >>> from kobza.core.errors import OutOfRange
    >>> print(text_of(OutOfRange("rank=0 is out of range.", "Take 1 or more.")))
    OutOfRange: rank=0 is out of range.
                Take 1 or more.
    """
    kind = type(error).__name__
    lines = [line for part in (error.message, error.hint) for line in str(part).splitlines() if line.strip()]
    indent = "\n" + " " * (len(kind) + 2)
    return f"{kind}: {indent.join(_clean(line) for line in lines[:4])}"


def _as_ours(error: BaseException) -> KobzaError | None:
    if isinstance(error, KobzaError):
        return error
    no_memory = isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
    if isinstance(error, MemoryError) or no_memory:
        return OutOfMemory("not enough memory.", "Take a smaller model, a shorter --text, or --dtype bfloat16.")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return CannotWrite(
            f"cannot write: {(error.strerror or str(error)).lower()}.", "Free some room, then try again."
        )
    return None


def _usage(error: Any) -> str:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "kobza"
    words = _clean(str(error.format_message()))
    return f"UsageError: {words}\n            See: {command} --help"


def _say(text: str) -> None:
    with suppress(OSError, ValueError):
        sys.stderr.write(text + "\n")


def _clean(line: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def _version() -> str:
    from kobza import __version__

    return __version__


def _forget_stdout() -> None:
    # the interpreter flushes standard output once more at its end, and would complain about the closed pipe
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _terminable() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # signals belong to the main thread
        yield
        return

    def end(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
