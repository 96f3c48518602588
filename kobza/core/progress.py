"""Progress that a terminal, a page or nobody listens to.

Library code reports steps; whoever called decides whether anyone looks. Without a listener a step costs one
dictionary look-up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


@dataclass
class Task:
    """A piece of work under way.

    Attributes:
        label: what is being done.
        total: steps in all, or None when unknown.
        done: steps finished.
        note: one short remark on the present step.
        seconds: since it began.
        finished: True in the last event.
    """

    label: str
    total: int | None = None
    done: int = 0
    note: str = ""
    finished: bool = False
    began: float = field(default_factory=time.monotonic, repr=False)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def step(self, n: int = 1, note: str = "") -> None:
        """Report `n` further steps done."""
        self.done += n
        self.note = note or self.note
        _tell(self)


_listener: ContextVar[Callable[[Task], None] | None] = ContextVar("listener", default=None)


@contextmanager
def listen(callback: Callable[[Task], None] | None) -> Iterator[None]:
    """Send every event of the block to `callback(task)`; None silences it."""
    token = _listener.set(callback)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def task(label: str, total: int | None = None) -> Iterator[Task]:
    """Announce a piece of work; `step` it inside the block."""
    work = Task(label, total)
    _tell(work)
    try:
        yield work
    finally:
        work.finished = True
        _tell(work)


def progress(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yield the items, reporting one step after each."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with task(label, total) as work:
        for item in items:
            yield item
            work.step()


def _tell(work: Task) -> None:
    callback = _listener.get()
    if callback is not None:
        callback(work)
