"""The runs folder: what was run, with which recipe, and what came out.

    $XDG_STATE_HOME/kobza/runs/<name>/
        recipe.yaml      what was asked
        journal.sqlite   points of a sweep: to do, under way, done, failed
        texts/           the texts a sweep measures on
        result/          result.json, report.html, a CSV per table, an SVG per figure

The name holds the beginning of the recipe's hash: the same recipe has the same folder, which is how a run goes on.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from kobza.core.errors import BadValue, CannotWrite, UnknownName
from kobza.core.files import state_dir
from kobza.core.result import Result
from kobza.core.table import Table
from kobza.recipes.journal import Journal
from kobza.recipes.recipe import Recipe

JOURNAL, RECIPE, RESULT = "journal.sqlite", "recipe.yaml", "result"
DIGITS = 10  # of the recipe's hash in a folder's name


@dataclass(frozen=True)
class Run:
    """One folder of the runs folder."""

    folder: Path

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.name

    @property
    def recipe(self) -> Recipe:
        """What was asked."""
        return Recipe.load(self.folder / RECIPE)

    @property
    def is_finished(self) -> bool:
        """True when a result was written."""
        return (self.folder / RESULT / "result.json").is_file()

    def result(self) -> Result:
        """Return what came out.

        Raises:
            MissingFile: the run has not ended yet.
        """
        return Result.load(self.folder / RESULT)

    def row(self) -> dict[str, object]:
        """Return one line about the run."""
        states = self._states()
        done = f"{states.count('done')}/{len(states)}" if states else ""
        stamp = (self.folder / RECIPE).stat().st_mtime
        return {
            "run": self.name,
            "when": datetime.fromtimestamp(stamp).strftime("%Y-%m-%d %H:%M"),
            "state": "finished" if self.is_finished else "unfinished",
            "points": done,
            "failed": states.count("failed") or None,
            "title": self.recipe.title or None,
        }

    def _states(self) -> list[str]:
        if not (self.folder / JOURNAL).is_file():
            return []
        with Journal(self.folder / JOURNAL, create=False) as journal:
            return [entry.state for entry in journal.entries()]


def runs_dir() -> Path:
    """Return the runs folder: `$XDG_STATE_HOME/kobza/runs`."""
    return state_dir() / "runs"


def folder_of(recipe: Recipe) -> Path:
    """Return the folder that a recipe's run has; it need not exist."""
    steps = [s.name for c in (recipe.steps, *recipe.compare) for s in c]
    words = [Path(recipe.open).name, *list(dict.fromkeys(steps))[:3]]
    slug = "-".join(filter(None, (re.sub(r"[^A-Za-z0-9.]+", "-", w).strip("-.") for w in words)))[:80]
    return runs_dir() / f"{slug or 'run'}-{recipe.hash[:DIGITS]}"


def begin(recipe: Recipe, folder: Path | None = None) -> Run:
    """Make the folder of a run, or find the one it has; the recipe is written into it.

    Raises:
        BadValue: the folder holds another recipe.
        CannotWrite: it cannot be made.
    """
    place = folder or folder_of(recipe)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "a file is in its place" if place.is_file() else (error.strerror or str(error)).lower()
        raise CannotWrite(f"cannot make the folder '{place}': {reason}.", "Name another folder.") from None
    if not (place / RECIPE).exists():
        recipe.save(place / RECIPE)
    elif Recipe.load(place / RECIPE).hash != recipe.hash:
        raise BadValue(f"the folder '{place}' holds the run of another recipe.", "Name another folder.")
    return Run(place)


def keep(recipe: Recipe, result: Result, folder: Path | None = None) -> Run:
    """Write a result into the folder of its recipe's run, in the place of an earlier one."""
    run = begin(recipe, folder)
    result.save(run.folder / RESULT, replace=True)
    return run


def runs() -> list[Run]:
    """Return every run, the latest last."""
    found = [path.parent for path in runs_dir().glob(f"*/{RECIPE}")]
    return [Run(folder) for folder in sorted(found, key=lambda f: ((f / RECIPE).stat().st_mtime, f.name))]


def find(name: str) -> Run:
    """Return the run of that name, of that beginning if only one has it, or in that folder.

    Raises:
        UnknownName: there is none; the message lists the nearest.
        BadValue: several begin like that.
    """
    if (Path(name) / RECIPE).is_file():
        return Run(Path(name))
    known = {run.name: run for run in runs()}
    fits = [run for run in known if run == name] or [run for run in known if name and run.startswith(name)]
    if len(fits) > 1:
        raise BadValue(
            f"{len(fits)} runs begin with {name!r}: {', '.join(sorted(fits)[:4])}.", "Give more of the name."
        )
    if not fits:
        raise UnknownName.of("run", name, known, see="kobza runs")
    return known[fits[0]]


def listing() -> Table:
    """Return a row per run."""
    columns = ["run", "when", "state", "points", "failed", "title"]
    return Table([run.row() for run in runs()], title="Runs", note=f"in {runs_dir()}", order=columns)


def compare(a: str, b: str) -> Table:
    """Return the readings of two runs beside each other, or, of two sweeps, their tables.

    Raises:
        NotComparable: the figures were taken under different conditions; the message says which.
    """
    one, two = find(a).result(), find(b).result()
    if one.readings and two.readings:
        return one.compare(two)
    from kobza.recipes.tabling import compare_sweeps

    return compare_sweeps(one, two)


def remove(name: str) -> Path:
    """Delete the folder of a run; returns where it was."""
    run = find(name)
    try:
        shutil.rmtree(run.folder)
    except OSError as error:
        raise CannotWrite(f"cannot remove '{run.folder}': {(error.strerror or str(error)).lower()}.") from None
    return run.folder
