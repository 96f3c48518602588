"""Progress as one line on standard error, where a person is looking."""

from __future__ import annotations

import os
import sys
import time
from typing import IO

from kobza.core.progress import Task

WIDTH = 24  # characters of the bar
REST = 0.08  # seconds between two drawings
CLEAR = "\r\x1b[K"


class Bar:
    """Draws the task that was heard last; erases itself when told to.

    Args:
        stream: where to draw.
    """

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream
        self.drawn = 0.0
        self.is_shown = False

    def __call__(self, work: Task) -> None:
        """Hear of a task; draws at most 12 times a second."""
        now = time.monotonic()
        if work.finished:
            self.erase()
        elif now - self.drawn > REST:
            self.drawn, self.is_shown = now, True
            self.stream.write(CLEAR + line(work, _columns()))
            self.stream.flush()

    def erase(self) -> None:
        """Leave the line as if nothing had been drawn."""
        if self.is_shown:
            self.stream.write(CLEAR)
            self.stream.flush()
            self.is_shown = False


def line(work: Task, columns: int) -> str:
    """Return the task as one line of less than `columns` characters."""
    if work.total:
        full = min(WIDTH, WIDTH * work.done // work.total)
        middle = f"{'█' * full}{'·' * (WIDTH - full)} {work.done}/{work.total}{_remaining(work)}"
    else:
        middle = f"{work.done or ''} {work.seconds:.0f} s"
    text = f"{work.label}  {middle}  {work.note}".rstrip()
    clean = "".join(c if c.isprintable() else "?" for c in text)
    return clean if len(clean) < columns else clean[: columns - 2] + "…"


def wanted(stream: IO[str]) -> bool:
    """Say whether a moving line may be drawn: a terminal that can erase one."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def _remaining(work: Task) -> str:
    if not work.total or work.done < 2:
        return ""
    seconds = work.seconds / work.done * (work.total - work.done)
    return f", {seconds / 60:.0f} min left" if seconds > 90 else f", {seconds:.0f} s left"


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError, AttributeError):
        return 80
