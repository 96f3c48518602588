"""The log of a run: CSV always, TensorBoard and Weights & Biases where they are installed and asked for; its curves."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from kobza.core.errors import BadValue, MissingExtra, UnknownName
from kobza.core.figure import Figure
from kobza.core.files import write_atomic
from kobza.core.table import Table

COLUMNS = ("step", "seconds", "tokens", "loss", "held", "held_all", "tokens_per_second", "rate", "norm")
Row = dict[str, Any]


class Outside(Protocol):
    """A log of another make."""

    def write(self, row: Row) -> None:
        """Add a row."""

    def close(self) -> None:
        """Finish: nothing more comes."""


class Log:
    """Rows written as they come.

    Args:
        folder: where `log.csv` goes; None keeps nothing.
        also: further logs: "tensorboard", "wandb".
        rows: of the part that was run before; they replace what the file holds beyond them.

    Raises:
        MissingExtra: a log that was asked for is not installed. UnknownName: there is no such log.
        BadValue: TensorBoard without a folder.
    """

    def __init__(self, folder: Path | None, also: Sequence[str] = (), rows: Sequence[Row] = ()) -> None:
        self._file = None if folder is None else folder / "log.csv"
        self._rows = list(rows)
        for kind in also:
            _check(kind, folder)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._outside: list[Outside] = [KINDS[kind][1](folder, self._rows) for kind in also]
        self._columns: list[str] = []
        self._rewrite()

    def write(self, row: Row) -> None:
        """Add a row; a figure that no row had before becomes a column of all."""
        self._rows.append(row)
        if not row.keys() <= set(self._columns):
            self._rewrite()
        elif self._file is not None:
            with open(self._file, "a", encoding="utf-8") as file:
                file.write(_lines(self._columns, [row], head=False))
        for log in self._outside:
            log.write(row)

    def close(self) -> None:
        """Finish the further logs; without it they may lose their last rows."""
        for log in self._outside:
            log.close()
        self._outside = []

    def _rewrite(self) -> None:
        self._columns = list(dict.fromkeys([*COLUMNS, *(key for row in self._rows for key in row)]))
        if self._file is not None:
            write_atomic(self._file, _lines(self._columns, self._rows, head=True))


class TensorBoard:
    """Scalars, and the samples as texts, for TensorBoard's own reader."""

    def __init__(self, folder: Path, rows: Sequence[Row]) -> None:
        module: Any = importlib.import_module("torch.utils.tensorboard")
        # what a killed run wrote beyond its checkpoint comes again: the reader is told to forget it
        after = rows[-1]["step"] + 1 if rows else None
        self._writer = module.SummaryWriter(str(folder), purge_step=after)

    def write(self, row: Row) -> None:
        """Add a row, at once on the disk."""
        for key, value in _numbers(row).items():
            self._writer.add_scalar(key, value, row["step"])
        if "sample" in row:
            self._writer.add_text("sample", row["sample"], row["step"])
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class Wandb:
    """A run of Weights & Biases, offline where WANDB_MODE says so; the same run again when a killed one goes on."""

    def __init__(self, folder: Path | None, rows: Sequence[Row]) -> None:
        module: Any = importlib.import_module("wandb")
        mark = None if folder is None else folder / "wandb.txt"
        known = mark.read_text(encoding="utf-8").strip() if mark is not None and mark.is_file() and rows else None
        where = None if folder is None else str(folder)
        self._run = module.init(project="kobza", dir=where, id=known, resume="allow" if known else None)
        if mark is not None:
            write_atomic(mark, f"{self._run.id}\n")

    def write(self, row: Row) -> None:
        """Add a row."""
        self._run.log(_numbers(row), step=row["step"])

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


KINDS: dict[str, tuple[str, Any]] = {"tensorboard": ("tensorboard", TensorBoard), "wandb": ("wandb", Wandb)}


def _check(kind: str, folder: Path | None) -> None:
    if kind not in KINDS:
        raise UnknownName.of("log", kind, KINDS)
    package = KINDS[kind][0]
    if importlib.util.find_spec(package) is None:
        raise MissingExtra.of(f"the log {kind!r}", package, kind)
    if kind == "tensorboard" and folder is None:
        raise BadValue("the log 'tensorboard' needs a place for its files.", "Give a folder (kobza train --save DIR).")


def _lines(columns: Sequence[str], rows: Sequence[Row], *, head: bool) -> str:
    out = io.StringIO()
    table = csv.DictWriter(out, columns, lineterminator="\n")
    if head:
        table.writeheader()
    table.writerows(rows)
    return out.getvalue()


def _numbers(row: Row) -> dict[str, float]:
    return {key: value for key, value in row.items() if isinstance(value, int | float)}


def curves(history: Table) -> list[Figure]:
    """Return a figure of training loss and held-out bits per byte over the steps."""
    series = []
    unit = history.units.get("held", "")
    for name, label in (("loss", "training loss [nats/token]"), ("held", f"held out [{unit}]")):
        rows = [row for row in history.rows if row.get(name) is not None]
        if len(rows) > 1:
            series.append({"name": label, "x": [row["step"] for row in rows], "y": [row[name] for row in rows]})
    if not series:
        return []
    caption = (
        "Means over the steps between two looks; the held-out text leaves out what also stands in the training part."
    )
    return [Figure("lines", {"series": series}, title=history.title, caption=caption, x="step", y=f"nats or {unit}")]
