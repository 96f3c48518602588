"""Results to standard output or to a file, whole or not at all."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kobza.core.errors import BadValue, CannotWrite

if TYPE_CHECKING:
    from kobza.core.result import Result
    from kobza.core.table import Table

TABLES = (".csv", ".jsonl", ".md", ".parquet")
PICTURES = (".svg", ".png")
ROWS_SHOWN = 40  # of an intervention's table on a terminal
SUFFIXES = (".json", ".html", *TABLES, *PICTURES)


class Hangup(Exception):
    """The other end of standard output was closed."""


class Interrupted(BaseException):
    """Ctrl-C came while a command ran; the argument parser would turn KeyboardInterrupt into a silent exit."""


@dataclass(frozen=True)
class Form:
    """How a result is wanted: a format for standard output, and a file."""

    kind: str = "text"  # "text", "json", "jsonl" or "csv"
    output: Path | None = None


def form(*, as_json: bool, as_jsonl: bool, as_csv: bool, output: Path | None) -> Form:
    """Return the form asked for, refusing what could not be done in the end before any work is begun.

    Raises:
        BadValue: two formats at once, or a suffix that means none.
        CannotWrite: the output is a folder, or in a folder that is missing or read-only.
    """
    kinds = [k for k, asked in (("json", as_json), ("jsonl", as_jsonl), ("csv", as_csv)) if asked]
    if len(kinds) > 1:
        raise BadValue(f"--{kinds[0]} and --{kinds[1]} cannot both go to standard output.", "Ask for one of them.")
    if output is not None:
        require_writable(output)
        if output.suffix.lower() not in SUFFIXES:
            raise BadValue(f"cannot tell the format of '{output}'.", f"Suffixes: {', '.join(SUFFIXES)}")
    return Form(kinds[0] if kinds else "text", output)


def require_writable(path: Path) -> None:
    """Refuse a file that surely cannot be written, before the work and not after it.

    Raises:
        CannotWrite: the path is a folder, or its folder is missing or read-only.
    """
    if path.is_dir():
        raise CannotWrite(f"cannot write '{path}': a folder is in its place.", "Name a file.")
    if not path.parent.is_dir():
        raise CannotWrite(
            f"cannot write '{path}': there is no folder '{path.parent}'.", f"Make it first: mkdir -p '{path.parent}'"
        )
    if not os.access(path.parent, os.W_OK):
        raise CannotWrite(f"cannot write '{path}': the folder '{path.parent}' is read-only.", "Name another folder.")


def require_new_folder(path: Path) -> None:
    """Refuse a folder to write that is taken, before the work and not after it.

    Raises:
        CannotWrite: a file or a filled folder is in its place, or its parent is missing or read-only.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise CannotWrite(f"cannot write the folder '{path}': a file is in its place.", "Name another folder.")
    if path.is_dir() and any(path.iterdir()):
        raise CannotWrite(f"cannot write the folder '{path}': it exists and is not empty.", "Name a new folder.")
    if not path.is_dir():
        require_writable(path)


def show(found: Result | Table | str, wanted: Form) -> None:
    """Write what a command found: to the file if one is named, else to standard output."""
    if wanted.output is not None:
        save(found, wanted.output)
        sys.stderr.write(f"wrote {wanted.output}\n")
        if wanted.kind == "text":
            return
    write(_TEXT[wanted.kind](found).rstrip("\n") + "\n")


def save(found: Result | Table | str, path: Path) -> None:
    """Write to a file in the format of its suffix."""
    from kobza.core.files import write_atomic

    suffix = path.suffix.lower()
    if suffix in PICTURES:
        _picture(found).save(path)
    elif suffix in TABLES:
        main_table(found).save(path)
    elif suffix == ".json":
        write_atomic(path, as_json_text(found) + "\n")
    else:
        from kobza.core.render import page

        title = getattr(found, "title", "") or "kobza"
        write_atomic(path, page(title, [found]))


def write(text: str) -> None:
    """Write to standard output at once.

    Raises:
        Hangup: nobody reads any more (`| head`).
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise Hangup from None
    except UnicodeEncodeError:
        coding = sys.stdout.encoding or "ascii"
        sys.stdout.write(text.encode(coding, errors="backslashreplace").decode(coding))
        sys.stdout.flush()


def printable(text: str) -> str:
    """Return text that can be shown on a terminal: line ends and tabs stay, other control characters are escaped.

    >>> printable("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def main_table(found: Result | Table | str) -> Table:
    """Return the table to save as CSV: the first one, or the readings as rows, or the figures of a text's lines."""
    from kobza.core.result import Result
    from kobza.core.table import Table

    if isinstance(found, Table):
        return found
    if not isinstance(found, Result):
        return Table([{"line": line} for line in str(found).splitlines()])
    if found.tables:
        return found.tables[0]
    return readings_table(found)


def readings_table(result: Result) -> Table:
    """Return a row per reading."""
    from kobza.core.table import Table

    names = ("name", "value", "unit", "low", "high", "note")
    return Table([{name: getattr(r, name) for name in names} for r in result.readings], title=result.title)


def as_json_text(found: Result | Table | str) -> str:
    """Return one JSON document with its schema."""
    if isinstance(found, str):
        return json.dumps({"schema": "kobza.text/1", "text": found}, ensure_ascii=False)
    return found.json_text()


def _picture(found: Any) -> Any:
    figures = [*getattr(found, "figures", ()), *(f for t in getattr(found, "tables", ()) for f in t.figures)]
    if figures:
        return figures[0]
    return main_table(found).figure()


def _table_text(found: Any, suffix: str) -> str:
    table = main_table(found)
    return table._csv() if suffix == ".csv" else table._jsonl()


def as_text(found: Any) -> str:
    """Return what a person reads: a result whose table holds all its readings is shown without listing them again."""
    from kobza.core.result import Result
    from kobza.recipes.running import COMPARISON

    if isinstance(found, Result) and found.tables and found.tables[0].title == COMPARISON:
        found = replace(found, readings=[])
    if isinstance(found, Result) and "technique" in found.made_by.get("how", {}):  # what an intervention found
        shown = replace(found, tables=[_shortened(table) for table in found.tables])
        return "\n\n".join([printable(str(shown)), *_heat_maps(found)])
    return printable(str(found))


def _shortened(table: Table) -> Table:
    """A table fit for a terminal: the first rows, and how to get the others."""
    if len(table) <= ROWS_SHOWN:
        return table
    short = table.head(ROWS_SHOWN)
    short.note = f"{len(table) - ROWS_SHOWN:,} further rows: --csv, --json or --output FILE. {table.note}"
    return short


def _heat_maps(found: Result) -> list[str]:
    from kobza.core.heat import heat_map

    colored = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    maps = [figure for table in found.tables for figure in table.figures if figure.kind == "image"]
    return [heat_map(figure, colored=colored) for figure in maps]


_TEXT: dict[str, Callable[[Any], str]] = {
    "text": as_text,
    "json": as_json_text,
    "jsonl": lambda found: _table_text(found, ".jsonl"),
    "csv": lambda found: _table_text(found, ".csv"),
}
