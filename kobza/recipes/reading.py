"""YAML read so that an error can name its line, and a hostile file costs nothing.

Aliases are refused (a few lines of them can stand for gigabytes), double keys too (the last would win in silence).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import yaml

from kobza.core.errors import BadValue

DEPTH = 20  # levels of lists and mappings; a recipe has five


def read_yaml(text: str, name: str) -> tuple[Any, Callable[..., str]]:
    """Return the data, and a function that says " (line 3 of 'name')" for a path of keys.

    Raises:
        BadValue: not YAML, more than one document, aliases, double keys, or deeper than 20 levels.
    """
    try:
        _refuse_depth_and_aliases(text, name)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        lines = dict(_lines(root, (), name)) if root is not None else {}
        data = yaml.safe_load(text)
    except BadValue:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f" in line {mark.line + 1}" if mark else ""
        raise BadValue(f"'{name}' is not YAML{at}: {error.problem or error.context}.") from None
    except (yaml.YAMLError, ValueError) as error:
        raise BadValue(f"'{name}' is not YAML: {' '.join(str(error).split())}.") from None

    def where(*path: Any) -> str:
        return f" (line {lines[path]} of '{name}')" if path in lines else ""

    return ({} if data is None else data), where


def _refuse_depth_and_aliases(text: str, name: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise BadValue(f"'{name}' uses an alias in line {_line(event)}.", "Write the value out.")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEPTH:
            raise BadValue(f"'{name}' is nested deeper than {DEPTH} levels in line {_line(event)}.")


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 0


def _lines(node: yaml.Node, path: tuple[Any, ...], name: str) -> Iterator[tuple[tuple[Any, ...], int]]:
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                raise BadValue(f"'{name}' has {key.value!r} twice, the second time in line {key.start_mark.line + 1}.")
            seen.add(key.value)
            yield (*path, key.value), key.start_mark.line + 1
            yield from _lines(value, (*path, key.value), name)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield (*path, i), value.start_mark.line + 1
            yield from _lines(value, (*path, i), name)
