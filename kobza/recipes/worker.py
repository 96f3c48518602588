"""A worker of a sweep: a process that opens the model once and measures points until its driver hangs up.

Requests come as lines of JSON on standard input, answers go as lines of JSON to what was standard output when it
began. The end of input ends the process at once, whatever it is doing: a killed driver leaves no worker behind.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

from kobza.core.errors import Corrupt, KobzaError, OutOfMemory
from kobza.core.files import sha256_file
from kobza.core.texts import Text
from kobza.recipes.journal import plain
from kobza.recipes.recipe import Chain, Recipe, spell_chain

if TYPE_CHECKING:
    from kobza.models.model import Model

NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")  # how torch and libc say it


class Bench:
    """What a worker keeps between points: the opened model, and the last edited one (its texts follow each other)."""

    def __init__(self) -> None:
        self.recipe = Recipe()
        self.original: Model | None = None
        self.chain = ""
        self.edited: Model | None = None

    def open(self, recipe: dict[str, Any], memory: int = 0) -> dict[str, Any]:
        """Open the recipe's model with one thread and at most `memory` bytes; returns what tells it from others."""
        limit_memory(memory)
        import torch

        from kobza.recipes.running import open_model, versions

        torch.set_num_threads(1)
        self.recipe = Recipe.from_dict(recipe)
        self.original = open_model(self.recipe)
        tokenizer = self.original.tokenizer.fingerprint
        about = {"name": self.original.name, "fingerprint": self.original.fingerprint, "tokenizer": tokenizer}
        return about | {"origin": self.original.origin.spec, "versions": versions()}

    def point(self, chain: list[Any], measures: list[Any], text: dict[str, Any]) -> dict[str, Any]:
        """Measure one chain of edits on one text; returns its readings and changes as plain data."""
        from kobza.recipes.running import read_all

        assert self.original is not None, "the first request is 'open'"
        steps, wanted = (Recipe.from_dict({"steps": s}).steps for s in (chain, measures))
        model = self._model(steps)
        sample = read_sample(text)
        readings = read_all(model, sample, wanted, self.original if steps else None)
        changes = model.changes[len(self.original.changes) :]
        return {"readings": [r.to_json() for r in readings], "changes": [c.to_json() for c in changes]}

    def _model(self, steps: Chain) -> Model:
        from kobza.recipes.running import apply

        assert self.original is not None
        if not steps:
            return self.original
        if self.edited is None or self.chain != spell_chain(steps):
            self.edited = None  # before the next is made, so that two are never held
            self.edited, self.chain = apply(self.original, steps), spell_chain(steps)
        return self.edited


def read_sample(text: dict[str, Any]) -> Text:
    """Return the text that the driver laid down, checked against its hash."""
    if sha256_file(text["path"]) != text["sha256"]:
        raise Corrupt(f"the copy of text {text['name']!r} at '{text['path']}' was changed.", "Remove that file.")
    with open(text["path"], "rb") as file:
        return Text(text["name"], file.read(), text["origin"], text["licence"])


def limit_memory(size: int) -> None:
    """Let this process allocate at most `size` bytes [bytes, 0 .. ; 0 for no limit], where the system can (Linux)."""
    if size and sys.platform == "linux":
        import resource

        # RLIMIT_DATA counts private memory, and not the mapped file of weights, as RLIMIT_AS would (getrlimit(2))
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def answer(bench: Bench, request: dict[str, Any]) -> dict[str, Any]:
    """Do what a request asks; an error becomes an answer, since it fails one point and not the worker."""
    doing: dict[str, Callable[..., dict[str, Any]]] = {"open": bench.open, "point": bench.point}
    do = doing[request.pop("do")]
    try:
        return {"outcome": tidy(do(**request))}
    except KobzaError as error:
        return _refusal(error)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or any(words in str(error).lower() for words in NO_MEMORY):
            return _refusal(
                OutOfMemory("not enough memory for this point.", "Raise --memory, or take fewer --workers.")
            )
        return _bug(error)
    except Exception as error:  # noqa: BLE001 - whatever it is, it costs one point and not the sweep
        return _bug(error)


def tidy(value: Any) -> Any:
    """Return plain data in which a number that is not finite is None, since JSON has no word for it."""
    if isinstance(value, dict):
        return {str(k): tidy(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [tidy(v) for v in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def serve(requests: IO[str], answers: IO[str]) -> None:
    """Answer requests until the input ends, then end the process."""
    waiting: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        for line in requests:
            waiting.put(line)
        os._exit(0)  # the driver is gone: nobody reads what we are computing

    threading.Thread(target=listen, daemon=True).start()
    bench = Bench()
    while True:
        found = answer(bench, json.loads(waiting.get()))
        try:
            answers.write(plain(found) + "\n")
            answers.flush()
        except OSError:
            os._exit(0)


def main() -> None:
    """Serve on the process's own streams; anything printed by a library goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    serve(sys.stdin, answers)


def _refusal(error: KobzaError) -> dict[str, Any]:
    return {
        "error": {
            "kind": type(error).__name__,
            "message": error.message,
            "hint": error.hint,
            "exit_code": error.exit_code,
        }
    }


def _bug(error: Exception) -> dict[str, Any]:
    traceback.print_exc()
    return {
        "error": {"kind": "bug", "message": f"{type(error).__name__}: {error}", "hint": "", "exit_code": 70},
    }
