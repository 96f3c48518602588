"""Chat templates from a model's file: foreign code, rendered in a sandbox with limits of time and size.

A template is Jinja, a small language. The sandbox keeps it from Python's objects; a process of its own, with limits
of time and memory, keeps it from running or growing without end, which the sandbox alone does not ('a' * 10**8 is
allowed there, and a thread cannot be stopped).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kobza.core.errors import BadValue, Corrupt, KobzaError, OutOfTime, Unsafe

SECONDS = 2  # of processor time; a real template takes milliseconds
WALL = 20.0  # seconds on the wall, for a machine that is busy with other things
SIZE = 1 << 20  # characters of output and of the template itself
MEMORY = 512 << 20  # bytes of address space
_FIRST_HIDDEN = 0xF0000  # private use plane 15: no text has these for a meaning of its own


class Hidden:
    """Keeps the names of control tokens inside messages from being taken for control tokens.

    Before rendering every such name in a message becomes one private character; after rendering the text is cut
    at the control tokens that the template wrote, and the names are put back as plain letters.

    Args:
        special: the names of the control tokens.
    """

    def __init__(self, special: Mapping[str, int]) -> None:
        self._names = sorted(special, key=len, reverse=True)
        self._stand_ins: dict[str, str] = {}
        self._cut = re.compile("|".join(map(re.escape, self._names))) if self._names else None

    def hide(self, value: Any) -> Any:
        """Return the same nested lists and mappings with control names in all strings replaced."""
        if isinstance(value, str):
            self._refuse_private(value)
            return self._cut.sub(lambda found: self._stand_in(found[0]), value) if self._cut else value
        if isinstance(value, Mapping):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        return [self.hide(item) for item in value] if isinstance(value, list | tuple) else value

    def pieces(self, rendered: str) -> Iterator[tuple[str, bool]]:
        """Yield the rendered text cut at the template's control tokens: (text, False) or (control name, True)."""
        at = 0
        for found in self._cut.finditer(rendered) if self._cut else ():
            if found.start() > at:
                yield self._shown(rendered[at : found.start()]), False
            yield found[0], True
            at = found.end()
        if at < len(rendered):
            yield self._shown(rendered[at:]), False

    def _stand_in(self, name: str) -> str:
        return self._stand_ins.setdefault(name, chr(_FIRST_HIDDEN + self._names.index(name)))

    def _shown(self, text: str) -> str:
        for name, stand_in in self._stand_ins.items():
            text = text.replace(stand_in, name)
        return text

    def _refuse_private(self, text: str) -> None:
        last = _FIRST_HIDDEN + len(self._names)
        for character in text:
            if _FIRST_HIDDEN <= ord(character) < last:
                raise BadValue(f"a message has the private character U+{ord(character):X}.", "Remove it.")


def render(source: str, messages: list[Any], **names: Any) -> str:
    """Render a chat template over messages, in a process of its own (0.1 s).

    Args:
        source: the Jinja source, at most 1 MiB.
        messages: what the template calls `messages`.
        names: further names the template may use, e.g. `bos_token`.

    Raises:
        BadValue: the template itself refuses the messages, or uses something they lack.
        Corrupt: it is not Jinja.
        OutOfTime: it computes longer than 2 s.
        Unsafe: it grows beyond 1 MiB of text or 512 MiB of memory, or tries to leave its sandbox.
    """
    if len(source) > SIZE:
        raise Unsafe(f"the chat template has {len(source)} characters; allowed are {SIZE}.")
    request = {"source": source, "names": {"messages": messages, **names}}
    answer = _child(request | {"seconds": SECONDS, "size": SIZE, "memory": MEMORY})
    if "text" in answer:
        return answer["text"]
    kind, says = _FAILURES.get(answer["error"], (BadValue, "fails on these messages"))
    raise kind(f"the chat template {says}: {answer['reason']}.", "The text itself can be given instead of messages.")


_FAILURES: dict[str, tuple[type[KobzaError], str]] = {
    "syntax": (Corrupt, "is not valid Jinja"),
    "sandbox": (Unsafe, "tries to leave its sandbox"),
    "undefined": (BadValue, "cannot use these messages"),
    "refused": (BadValue, "refuses these messages"),
    "size": (Unsafe, "grows without end"),
}


def _child(request: dict[str, Any]) -> dict[str, str]:
    """Run the child process; its limit is processor time, since wall time depends on what else the machine does."""
    command = [sys.executable, "-I", str(Path(__file__).with_name("_template_child.py"))]
    try:
        done = subprocess.run(
            command, input=json.dumps(request).encode(), capture_output=True, timeout=WALL, check=False
        )
    except subprocess.TimeoutExpired:
        raise _too_long(WALL) from None
    if not done.stdout:
        if b"MemoryError" in done.stderr:
            raise Unsafe("the chat template grows without end.", "Give the text itself instead of messages.")
        raise _too_long(SECONDS)
    answer: dict[str, str] = json.loads(done.stdout)
    return answer


def _too_long(seconds: float) -> OutOfTime:
    return OutOfTime(f"the chat template ran longer than {seconds:g} s.", "Give the text itself instead of messages.")
