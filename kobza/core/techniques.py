"""Techniques found by folder and entry point: the folder is the registry.

A technique is a module in a room's folder; its file name is its name everywhere. Listing looks at file names and
imports nothing; running imports exactly one module. Outside packages add techniques by entry points of the group
`kobza.<room>` whose value names a module.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from kobza.core.errors import BadValue, UnknownName
from kobza.core.options import Option, options_in

# room -> the function every technique of the room gives
ROOMS: dict[str, str] = {
    "codecs": "compress",
    "decoding": "generate",
    "edits": "apply",
    "embeddings": "table",
    "interventions": "run",
    "measures": "measure",
    "retrieval": "build",
    "training": "train",
}
SINGULAR = {
    "codecs": "codec", "decoding": "strategy", "edits": "edit", "embeddings": "view", "interventions": "intervention",
    "measures": "measure", "retrieval": "index", "training": "training",
}  # fmt: skip
# interventions are commands by their own name, but for these, whose name is another command's word
COMMANDS = {"explain": "explain-neuron", "transplant": "transplant-activation"}
# files of a room that are not techniques: shared ground, and what other techniques of the room stand on
NOT_TECHNIQUES = {
    "base", "before_after", "branching", "container", "grid", "lockstep", "planner", "range_coder", "replacing",
    "shaping", "speculation",
}  # fmt: skip
_HOUSE = Path(__file__).resolve().parents[1]


def rooms() -> list[str]:
    """Return the technique rooms that are built, in alphabetical order."""
    return [room for room in ROOMS if (_HOUSE / room / "__init__.py").is_file()]


@cache
def names(room: str) -> tuple[str, ...]:
    """Return the names of a room's techniques, sorted; nothing is imported.

    Raises:
        UnknownName: there is no such room.
    """
    if room not in ROOMS:
        raise UnknownName.of("room", room, ROOMS)
    own = {f.stem for f in (_HOUSE / room).glob("*.py") if not f.stem.startswith("_")} - NOT_TECHNIQUES
    return tuple(sorted(own | set(_outside(room))))


def load(room: str, name: str) -> ModuleType:
    """Import one technique.

    Raises:
        UnknownName: the room has no such technique; the message lists the nearest.
    """
    if name not in names(room):
        raise UnknownName.of(SINGULAR[room], name, names(room), see=f"kobza list {room}")
    if (_HOUSE / room / f"{name}.py").is_file():
        return importlib.import_module(f"kobza.{room}.{name}")
    return importlib.import_module(_outside(room)[name])


def verb(room: str, name: str) -> Callable[..., Any]:
    """Return a technique's function: `verb("edits", "lowrank")` is `kobza.edits.lowrank.apply`.

    Raises:
        UnknownName: the room has no such technique.
        BadValue: the module of an outside package lacks the room's function.
    """
    module = load(room, name)
    function = getattr(module, ROOMS[room], None)
    if not callable(function):
        raise BadValue(f"{SINGULAR[room]} {name!r} ({module.__name__}) has no function {ROOMS[room]!r}.")
    return function


def source(room: str, name: str) -> Path:
    """Return the source file of a technique, found without importing it.

    Raises:
        UnknownName: the room has no such technique.
    """
    if name not in names(room):
        raise UnknownName.of(SINGULAR[room], name, names(room), see=f"kobza list {room}")
    own = _HOUSE / room / f"{name}.py"
    if own.is_file():
        return own
    spec = importlib.util.find_spec(_outside(room)[name])
    if spec is None or spec.origin is None:
        raise UnknownName.of(SINGULAR[room], name, names(room))
    return Path(spec.origin)


def described(room: str, name: str) -> list[Option]:
    """Return a technique's options, read from its source without importing it."""
    return options_in(source(room, name), ROOMS[room])


@cache
def _outside(room: str) -> dict[str, str]:
    """Return {name: module} of the entry points of a room."""
    return {e.name: e.value for e in importlib.metadata.entry_points(group=f"kobza.{room}")}
