"""The log of a run: CSV always, TensorBoard and Weights & Biases where they are installed and asked for."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kobza.core.errors import MissingExtra, UnknownName
from kobza.core.files import write_atomic

COLUMNS = ("step", "seconds", "tokens", "loss", "held", "held_all", "tokens_per_second", "rate", "norm")
KINDS = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}


class Log:
    """Rows written as they come.

    Args:
        folder: where `log.csv` goes; None keeps nothing.
        also: further logs: "tensorboard", "wandb".
        rows: of the part that was run before; they replace what the file holds beyond them.

    Raises:
        MissingExtra: a log that was asked for is not installed.
    """

    def __init__(self, folder: Path | None, also: Sequence[str] = (), rows: Sequence[dict[str, Any]] = ()) -> None:
        self._file = None if folder is None else folder / "log.csv"
        self._columns = list(COLUMNS)
        self._outside = [_opened(kind, folder) for kind in also]
        if folder is not None and self._file is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._columns += [key for row in rows for key in row if key not in COLUMNS]
            self._columns = list(dict.fromkeys(self._columns))
            write_atomic(self._file, _lines(self._columns, rows, head=True))

    def write(self, row: dict[str, Any]) -> None:
        """Add a row."""
        if self._file is not None:
            with open(self._file, "a", encoding="utf-8") as file:
                file.write(_lines(self._columns, [row], head=False))
        for write in self._outside:
            write(row)


def _lines(columns: Sequence[str], rows: Sequence[dict[str, Any]], *, head: bool) -> str:
    out = io.StringIO()
    table = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    if head:
        table.writeheader()
    table.writerows(rows)
    return out.getvalue()


def _opened(kind: str, folder: Path | None) -> Any:
    if kind not in KINDS:
        raise UnknownName.of("log", kind, KINDS)
    if importlib.util.find_spec(kind) is None:
        raise MissingExtra(
            f"the log {kind!r} needs the package {kind!r}, which is not installed.", f"pip install {kind}"
        )
    module: Any = importlib.import_module(KINDS[kind])
    if kind == "wandb":
        run = module.init(project="kobza", dir=None if folder is None else str(folder))
        return lambda row: run.log(_numbers(row), step=row["step"])
    writer = module.SummaryWriter(None if folder is None else str(folder))
    return lambda row: [writer.add_scalar(key, value, row["step"]) for key, value in _numbers(row).items()]


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in row.items() if isinstance(value, int | float)}
