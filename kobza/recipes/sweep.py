"""A sweep: one recipe with ranges, measured point by point on worker processes over a journal.

Killing anything at any moment and running the same command again ends in the identical table: a point's outcome is
a function of what its key names (one thread, fixed seed), and a finished one is never measured again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kobza.core import techniques
from kobza.core.errors import BadValue, CheckFailed, KobzaError, OutOfRange, OutOfResources
from kobza.core.files import sha256, sha256_file, write_atomic
from kobza.core.options import Step
from kobza.core.progress import Task, task
from kobza.core.result import Reading, Result
from kobza.core.texts import Text
from kobza.core.texts import text as read_text
from kobza.recipes import runs
from kobza.recipes.journal import LEASE, Journal, me, plain
from kobza.recipes.pool import Pool, Worker
from kobza.recipes.recipe import Chain, Point, Recipe, described, spell_chain, with_seed
from kobza.recipes.running import as_recipe, text_record
from kobza.recipes.tabling import Measured, sweep_figures, sweep_table

TRIES = 2  # a point whose worker dies is begun once more, then it counts as failed
WORKERS = 8  # at most, when nobody says how many: each holds a model


@dataclass(frozen=True)
class Work:
    """One point on one text, as it is handed to a worker."""

    key: str
    group: str
    point: Point
    text: Text
    request: Mapping[str, Any]


def sweep(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    *,
    workers: int = 0,
    shard: str = "",
    folder: str | Path | None = None,
    merge: Sequence[str | Path] = (),
    memory: int = 0,
    seconds: float = 0.0,
) -> Result:
    """Measure every point of a recipe with ranges; go on where an earlier run of it was stopped.

    Args:
        recipe: a Recipe, its plain data, or the path of its YAML file.
        workers: processes, one thread and one model each [count, 0 ..]; 0 takes one per processor, up to 8.
        shard: "i/n" measures only the i-th of n parts [1 .. n]; the others are left to other machines.
        folder: where the run is kept; by default in the runs folder under the recipe's hash.
        merge: folders or journals of other shards whose finished points are taken over first.
        memory: bytes a worker may allocate [bytes, 0 ..]; 0 for no limit. Linux only.
        seconds: time a point may take [seconds, 0 ..]; 0 for no limit.

    Returns:
        A table in the order of the recipe, the unedited model first; per text and swept option a picture; in
        `made_by` how many points are done, failed and missing. It is also written into the run's folder.

    Raises:
        UsageError: the recipe, the shard or a number does not fit.
        KobzaError: the model cannot be opened, or the folder cannot be written.
    """
    recipe = as_recipe(recipe).check()
    if workers < 0 or memory < 0 or seconds < 0:
        raise OutOfRange(f"workers={workers}, memory={memory}, seconds={seconds}: none may be negative.")
    part = parse_shard(shard)
    points = [Point((), 0), *(p for p in recipe.points() if p.chain)]
    texts = [read_text(name) for name in recipe.text]
    run = runs.begin(recipe, Path(folder) if folder else None)
    records = [_lay_down(text, run.folder / "texts") for text in texts]
    with Journal(run.folder / runs.JOURNAL) as journal, Pool(seconds) as pool:
        about = _open_first(pool, recipe, memory)
        works = plan(recipe, points, texts, records, about)
        journal.add({w.key: w.request for w in works})
        for other in merge:
            journal.merge(_journal_of(other))
        mine = share(works, part)
        journal.retry(w.key for w in mine)
        _Driver(journal, pool, recipe, memory).work(mine, workers or min(WORKERS, processors()))
        result = collect(recipe, works, journal, about, records)
        with journal.alone():
            result.save(run.folder / runs.RESULT, replace=True)
    return result


def plan(
    recipe: Recipe,
    points: Sequence[Point],
    texts: Sequence[Text],
    records: Sequence[Mapping[str, Any]],
    about: Mapping[str, Any],
) -> list[Work]:
    """Return every point on every text, with the key that its outcome is filed under.

    The key is the hash of all that decides the outcome: the model's weights and tokenizer, the number format, the
    edits and measures with their options, seed, text, files that options name, the versions of the libraries and the
    code of the techniques.
    """
    found = []
    for point in points:
        measures = with_seed("measures", recipe.measures, point.seed)
        for text, record in zip(texts, records, strict=True):
            request = {"chain": _plain_chain(point.chain), "measures": _plain_chain(measures), "text": dict(record)}
            decisive = {
                "model": [about["fingerprint"], about["tokenizer"], recipe.dtype],
                "work": {**request, "text": text.sha256},
                "versions": about["versions"],
                "code": [code("edits", s.name) for s in point.chain] + [code("measures", s.name) for s in measures],
                "files": {path: sha256_file(path) for step in point.chain for path in files_in(step)},
            }
            found.append(Work(sha256(plain(decisive).encode()), group(point.chain), point, text, request))
    return found


def group(chain: Chain) -> str:
    """Return the chain without its numbers: points that share it share factorisations, and so a worker."""
    kept = []
    for step in chain:
        numbers = {o.name for o in described("edits", step.name) if set(o.kinds) & {"int", "float"}}
        kept.append(Step(step.name, {k: v for k, v in step.options.items() if k not in numbers}))
    return spell_chain(kept)


def processors() -> int:
    """Return how many processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def files_in(step: Step) -> list[str]:
    """Return the files that a step's options name, with a slice behind them or not (texts to calibrate on)."""
    words = [str(v) for value in step.options.values() for v in (value if isinstance(value, list) else [value])]
    return sorted({path for word in words if Path(path := word.partition("[")[0]).is_file()})


def parse_shard(shard: str) -> tuple[int, int]:
    """Read "i/n".

    Raises:
        BadValue: not of that form.
        OutOfRange: i is not in 1 .. n.
    """
    i, slash, n = (shard or "1/1").partition("/")
    if not (slash and i.strip().isdecimal() and n.strip().isdecimal()):
        raise BadValue(f"{shard!r} is not a shard.", "Write i/n, the i-th of n parts: 1/4")
    if not 1 <= int(i) <= int(n):
        raise OutOfRange(f"shard {shard!r} does not exist; allowed: 1/{int(n)} .. {int(n)}/{int(n)}.")
    return int(i), int(n)


def share(works: Sequence[Work], part: tuple[int, int]) -> list[Work]:
    """Return the i-th of n parts: neighbors stay together, and every part has the unedited model to compare with."""
    i, n = part
    base, rest = [w for w in works if not w.point.chain], [w for w in works if w.point.chain]
    return base + rest[len(rest) * (i - 1) // n : len(rest) * i // n]


def collect(
    recipe: Recipe,
    works: Sequence[Work],
    journal: Journal,
    about: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
) -> Result:
    """Return the result that the journal holds so far, in the order of the recipe."""
    measured, states = [], []
    for work in works:
        entry = journal.entry(work.key)
        states.append(entry.state if entry else "todo")
        if entry is not None and entry.state in ("done", "failed"):
            outcome = entry.outcome or {"readings": [], "changes": []}
            readings = [Reading.from_json(r) for r in outcome["readings"]]
            measured.append(Measured(work.point, work.text, readings, outcome["changes"], entry.reason))
    counts = {
        "points": len(works),
        "done": states.count("done"),
        "failed": states.count("failed"),
        "missing": len(works) - len(measured),
    }
    title = recipe.title or f"Sweep of {about['name']}"
    note = "low .. high: 95 % bootstrap over chunks of the text; factor: of the unedited model, paired"
    if counts["missing"]:
        note = f"{counts['missing']} of {len(works)} points are missing (other shards, or interrupted). {note}"
    table = sweep_table(recipe, measured, note=note)
    table.figures = sweep_figures(recipe, measured)
    made_by = {
        "recipe": recipe.to_dict(),
        "recipe_hash": recipe.hash,
        "model": {k: about[k] for k in ("name", "fingerprint", "origin")},
        "texts": [{k: v for k, v in record.items() if k != "path"} for record in records],
        "versions": about["versions"],
        "threads": 1,
        **counts,
    }
    return Result(title=title, tables=[table], made_by=made_by)


def require_whole(result: Result) -> None:
    """Refuse a result with failed points.

    Raises:
        CheckFailed: the message counts them and gives the first reason.
    """
    failed = result.made_by.get("failed", 0)
    if failed:
        reasons = [row["failed"] for row in result.tables[0] if row.get("failed")]
        points = result.made_by["points"]
        raise CheckFailed(
            f"{failed} of {points} points failed, the first: {reasons[0]}", "The others are in the table."
        )


class _Driver:
    """Hands points to workers and writes down what comes back."""

    def __init__(self, journal: Journal, pool: Pool, recipe: Recipe, memory: int) -> None:
        self.journal, self.pool, self.recipe, self.memory = journal, pool, recipe, memory
        self.owner = me()
        self.tries: dict[str, int] = {}
        self.renewed = time.monotonic()

    def work(self, works: Sequence[Work], count: int) -> None:
        """Bring every one of `works` to "done" or "failed", whoever does it."""
        states = self.journal.states(w.key for w in works)
        self.open = {w.key: w for w in works if states[w.key] not in ("done", "failed")}
        self.queue = _grouped(self.open.values())
        self.count = max(1, min(count, len(self.open)))
        try:
            with task("sweep", len(self.open)) as work:
                while self.open:
                    self._turn(work)
        finally:
            with suppress(KobzaError):  # whatever ended the work matters more
                self.journal.release(self.owner)

    def _turn(self, work: Task) -> None:
        self._hand_out(work)
        heard = self.pool.hear()
        if heard is not None:
            self._take(*heard, work)
        if time.monotonic() - self.renewed > LEASE / 6:
            self.journal.renew([w.busy.key for w in self.pool.workers if isinstance(w.busy, Work)], self.owner)
            self.renewed = time.monotonic()

    def _hand_out(self, work: Task) -> None:
        while len(self.pool.workers) < self.count and self.queue:
            _open(self.pool.hire(), self.recipe, self.memory)
        for worker in self.pool.workers:
            if worker.is_open and worker.busy is None:
                found = self._next(worker)
                if found is not None:
                    worker.ask("point", found, **found.request)
        if all(worker.busy is None for worker in self.pool.workers):
            self._look_around(work)

    def _next(self, worker: Worker) -> Work | None:
        """Return the next point that could be claimed: of the worker's group, of a new one, or half of the longest."""
        while True:
            if not worker.tail:
                worker.tail = self.queue.pop(0) if self.queue else self._steal()
            if not worker.tail:
                return None
            found: Work = worker.tail.pop(0)
            if found.key in self.open and self.journal.claim(found.key, self.owner):
                return found

    def _steal(self) -> list[Any]:
        longest = max(self.pool.workers, key=lambda w: len(w.tail))
        half = len(longest.tail) // 2
        longest.tail, taken = longest.tail[:half], longest.tail[half:]
        return taken

    def _look_around(self, work: Task) -> None:
        """Nothing can be claimed: others hold the rest. See what they finished, and take over what they left."""
        states = self.journal.states(self.open)
        for key, state in states.items():
            if state in ("done", "failed"):
                self._close(key, work)
        self.queue = _grouped(self.open.values())
        if self.open:
            time.sleep(0.2)

    def _take(self, worker: Worker, said: Mapping[str, Any], work: Task) -> None:
        if "outcome" in said and not worker.is_open:
            worker.is_open, worker.busy = True, None
        elif "outcome" in said:
            self.journal.finish(worker.busy.key, said["outcome"])
            self._close(worker.busy.key, work, worker.busy.point.spec)
            worker.busy = None
        elif "error" in said:
            self._refused(worker, said["error"], work)
        else:
            self._lost(worker, said.get("dead") or said["late"], work)

    def _refused(self, worker: Worker, error: Mapping[str, Any], work: Task) -> None:
        if not worker.is_open:  # the first worker could open it: memory, most likely
            raise _raised(error)
        self.journal.fail(worker.busy.key, f"{error['kind']}: {error['message']}")
        self._close(worker.busy.key, work, worker.busy.point.spec)
        worker.busy = None

    def _lost(self, worker: Worker, reason: str, work: Task) -> None:
        lost, tail = worker.busy, worker.tail
        self.pool.dismiss(worker)
        if tail:
            self.queue.insert(0, tail)
        if not isinstance(lost, Work):
            self._could_not_open(reason)
            return
        self.tries[lost.key] = self.tries.get(lost.key, 0) + 1
        if self.tries[lost.key] < TRIES:
            self.journal.hand_back(lost.key, self.owner)
            self.queue.append([lost])
        else:
            self.journal.fail(lost.key, f"{reason} ({TRIES} tries)")
            self._close(lost.key, work, lost.point.spec)

    def _could_not_open(self, reason: str) -> None:
        self.tries["open"] = self.tries.get("open", 0) + 1
        if self.tries["open"] >= TRIES:
            raise OutOfResources(f"a worker could not open '{self.recipe.open}': {reason}.", "Take fewer --workers.")

    def _close(self, key: str, work: Task, note: str = "") -> None:
        if self.open.pop(key, None) is not None:
            work.step(note=note or "unedited")


def _grouped(works: Iterable[Work]) -> list[list[Work]]:
    groups: dict[str, list[Work]] = {}
    for work in works:
        groups.setdefault(work.group, []).append(work)
    return list(groups.values())


def _open(worker: Worker, recipe: Recipe, memory: int) -> None:
    worker.ask("open", "open", recipe=recipe.to_dict(), memory=memory)


def _open_first(pool: Pool, recipe: Recipe, memory: int) -> dict[str, Any]:
    """Start a worker and return what it says of the model; a model that cannot be opened ends the sweep here."""
    worker = pool.hire()
    with task(f"open {recipe.open}"):
        _open(worker, recipe, memory)
        while (heard := pool.hear()) is None:
            continue
    said = heard[1]
    if "error" in said:
        raise _raised(said["error"])
    if "outcome" not in said:
        raise OutOfResources(f"a worker could not open '{recipe.open}': {said.get('dead') or said.get('late')}.")
    worker.is_open, worker.busy = True, None
    return dict(said["outcome"])


def _raised(error: Mapping[str, Any]) -> Exception:
    """Return the error that a worker met, as the kind it was."""
    from kobza.core import errors

    kind = getattr(errors, error["kind"], None)
    if kind is None:
        return RuntimeError(error["message"])
    found = kind(error["message"], error["hint"])
    return found if isinstance(found, Exception) else RuntimeError(error["message"])


def _lay_down(text: Text, folder: Path) -> dict[str, Any]:
    """Write a text's bytes into the run's folder, so that every worker and every later run measures the same."""
    path = folder / f"{text.sha256[:16]}.txt"
    folder.mkdir(exist_ok=True)
    if not path.is_file() or sha256_file(path) != text.sha256:
        write_atomic(path, text.data)
    return text_record(text) | {"path": str(path.resolve())}


def _journal_of(place: str | Path) -> Path:
    path = Path(place)
    return path / runs.JOURNAL if path.is_dir() else path


def _plain_chain(chain: Chain) -> list[Any]:
    return [{s.name: dict(s.options)} if s.options else s.name for s in chain]


@cache
def code(room: str, name: str) -> str:
    """Return a hash of a technique's source and of its room's shared ground: changed code means measured anew."""
    source = techniques.source(room, name)
    base = source.with_name("base.py")
    return sha256((sha256_file(source) + (sha256_file(base) if base.is_file() else "")).encode())
