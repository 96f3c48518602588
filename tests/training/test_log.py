"""The logs of a run: what was written is what a reader of its own make reads back."""

import csv
import importlib
import importlib.util
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from kobza.core.errors import BadValue, MissingExtra
from kobza.training import base
from kobza.training.parts.log import Log, TensorBoard


def job() -> base.Job:
    """Two numbers that shall become one; each look says how far they are."""
    module = torch.nn.Linear(2, 1)
    rows = torch.tensor([[1.0, 2.0], [3.0, 1.0]])

    def loss(batch: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        value = (module(batch) - 1).square().mean()
        return value, {"margin": float(value.detach()) / 2}

    def measure() -> dict[str, float]:
        return {"held": float(loss(rows)[0])}

    return base.Job(module, draw=lambda generator: rows, loss=loss, measure=measure, sample=lambda: "a text")


def read(folder: Path) -> list[dict[str, str]]:
    """Return the rows of the CSV."""
    with open(folder / "log.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_figure_of_the_history_is_in_the_csv(tmp_path: Path) -> None:
    history, _ = base.run(job(), base.plan(8, evaluate=2), folder=tmp_path)
    rows = read(tmp_path)
    assert [float(row["held"]) for row in rows] == history["held"]
    assert [row["margin"] for row in rows] == ["", *(str(row["margin"]) for row in history.rows[1:])]
    assert "a text" in [row["sample"] for row in rows]


def test_rows_beyond_the_checkpoint_are_replaced(tmp_path: Path) -> None:
    before = [{"step": 0, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 4, "loss": 9.0}]
    log = Log(tmp_path)
    for row in before:
        log.write(row)
    again = Log(tmp_path, rows=before[:2])
    again.write({"step": 4, "loss": 1.0, "wins": 0.5})
    assert [(row["step"], row["loss"], row["wins"]) for row in read(tmp_path)] == [
        ("0", "3.0", ""), ("2", "2.0", ""), ("4", "1.0", "0.5"),
    ]  # fmt: skip


def pretend(monkeypatch: pytest.MonkeyPatch, *, is_there: bool) -> None:
    """Let the packages of the logs, and no others, be there or not."""
    known = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> Any:
        return (object() if is_there else None) if name in ("tensorboard", "wandb") else known(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what TensorBoard's own reader finds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its imports are not ours
        reader = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
        found = reader.EventAccumulator(str(folder))
        found.Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


@pytest.fixture
def tensorboard() -> None:
    """Skip where the package is missing; its imports warn of things that are not ours."""
    if importlib.util.find_spec("tensorboard") is None:
        pytest.skip("the package tensorboard is not installed: pip install tensorboard")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("torch.utils.tensorboard")


@pytest.mark.usefixtures("tensorboard")
def test_tensorboard_reads_the_figures_of_the_history(tmp_path: Path) -> None:
    history, _ = base.run(job(), base.plan(8, evaluate=2), folder=tmp_path, log=("tensorboard",))
    found = scalars(tmp_path)
    for name in ("loss", "held", "tokens", "seconds", "tokens_per_second", "rate", "norm", "margin"):
        wanted = [(row["step"], row[name]) for row in history.rows if row.get(name) is not None]
        assert [step for step, _ in found[name]] == [step for step, _ in wanted]
        assert [value for _, value in found[name]] == pytest.approx([value for _, value in wanted], rel=1e-6)


@pytest.mark.usefixtures("tensorboard")
def test_tensorboard_forgets_what_a_killed_run_wrote_beyond_its_checkpoint(tmp_path: Path) -> None:
    before = [{"step": 0, "loss": 3.0}, {"step": 2, "loss": 2.0}]
    first = TensorBoard(tmp_path, [])
    for row in (*before, {"step": 4, "loss": 9.0}):
        first.write(row)  # and is killed: nothing is closed
    second = TensorBoard(tmp_path, before)
    second.write({"step": 4, "loss": 1.0})
    second.close()
    assert scalars(tmp_path)["loss"] == [(0, 3.0), (2, 2.0), (4, 1.0)]
    first.close()


def test_tensorboard_without_a_folder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, is_there=True)
    with pytest.raises(BadValue, match="place"):
        base.run(job(), base.plan(1), log=("tensorboard",))


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_a_log_that_is_not_installed_names_its_command(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, is_there=False)
    with pytest.raises(MissingExtra, match=f"pip install 'kobza.{kind}.'"):
        base.run(job(), base.plan(1), log=(kind,))


class Told:
    """A stand-in for the package wandb."""

    def __init__(self) -> None:
        self.begun: list[dict[str, Any]] = []
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.finished = 0

    def init(self, **how: Any) -> Any:
        self.begun.append(how)

        def finish() -> None:
            self.finished += 1

        return types.SimpleNamespace(
            id=how["id"] or "one", log=lambda row, step: self.rows.append((step, row)), finish=finish
        )


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Told:
    """The stand-in, imported as wandb."""
    told = Told()
    monkeypatch.setitem(sys.modules, "wandb", told)  # type: ignore[arg-type]
    pretend(monkeypatch, is_there=True)
    return told


def test_wandb_gets_the_numbers_and_is_finished(tmp_path: Path, wandb: Told) -> None:
    history, _ = base.run(job(), base.plan(4, evaluate=2), folder=tmp_path, log=("wandb",))
    assert [(step, row["held"]) for step, row in wandb.rows] == [(row["step"], row["held"]) for row in history.rows]
    assert all(isinstance(value, int | float) for _, row in wandb.rows for value in row.values())
    assert wandb.begun[0] == {"project": "kobza", "dir": str(tmp_path), "id": None, "resume": None}
    assert wandb.finished == 1


def test_a_run_that_goes_on_is_the_same_run_in_wandb(tmp_path: Path, wandb: Told) -> None:
    how = {"schedule": "constant", "evaluate": 2}
    base.run(job(), base.plan(2, **how), folder=tmp_path, log=("wandb",))
    base.run(job(), base.plan(4, **how), folder=tmp_path, log=("wandb",))
    assert (wandb.begun[1]["id"], wandb.begun[1]["resume"]) == ("one", "allow")
    assert [step for step, _ in wandb.rows] == [0, 2, 4]


def test_a_run_that_breaks_finishes_its_logs(wandb: Told) -> None:
    work = job()
    work.loss = lambda batch: (work.module(batch).mean() / 0, {})
    with pytest.raises(Exception, match="not finite"):
        base.run(work, base.plan(1), log=("wandb",))
    assert wandb.finished == 1
