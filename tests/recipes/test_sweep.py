"""Sweeps: killed, sharded, merged or shared, the table is the same; a dead worker costs its point and no other."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import kobza
import kobza.recipes.sweep as module
from kobza.core.errors import BadValue, CheckFailed, NotComparable, OutOfRange
from kobza.edits import noise
from kobza.measures import bits_per_byte
from kobza.recipes import runs
from kobza.recipes.journal import Journal
from kobza.recipes.pool import Pool
from kobza.recipes.recipe import Recipe, chain
from kobza.recipes.sweep import group, parse_shard, require_whole, share, sweep

TEXT = "topics[:300]"
LONG = "topics[:6000]"  # about 0.1 s a point: time enough to be killed in the middle


def recipe(*chains: str, **fields: Any) -> Recipe:
    wanted = {"open": "tiny", "measures": chain("bits_per_byte"), "text": (TEXT,), **fields}
    return Recipe(compare=tuple(chain(c) for c in chains), **wanted)


def csv_of(result: kobza.Result) -> str:
    return result.tables[0]._csv()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep of two methods and two draws that nobody disturbed."""
    wanted = recipe("lowrank:rank=8..32:8", "noise:strength=0.1|0.4", seed="0..1", text=(LONG,))
    folder = tmp_path_factory.mktemp("whole") / "run"
    sweep(wanted, workers=2, folder=folder)
    return folder


@pytest.fixture(scope="module")
def whole(kept: Path) -> kobza.Result:
    """The result of that sweep."""
    return kobza.Result.load(kept / "result")


def test_the_table_has_every_point_in_the_order_of_the_recipe(whole: kobza.Result) -> None:
    table = whole.tables[0]
    ranked = [("lowrank", rank, None, None) for rank in (8, 16, 24, 32)]
    drawn = [("noise", None, strength, seed) for strength in (0.1, 0.4) for seed in (0, 1)]
    assert [(r["edit"], r.get("rank"), r.get("strength"), r.get("seed")) for r in table] == [
        ("unedited", None, None, None), *ranked, *drawn
    ]  # fmt: skip
    assert whole.made_by["done"] == whole.made_by["points"] == 9


def test_a_point_is_what_one_measures_by_hand(whole: kobza.Result, tiny: Any) -> None:
    base = bits_per_byte.measure(tiny, LONG)
    edited = bits_per_byte.measure(noise.apply(tiny, strength=0.4, seed=1), LONG)
    row = whole.tables[0][-1]
    assert row["bits_per_byte"] == edited.value
    assert row["factor"] == base.compare(edited).record["factor"]
    assert (row["low"], row["high"]) == (edited.low, edited.high)


def test_full_rank_changes_nothing(whole: kobza.Result) -> None:
    row = whole.tables[0].where(rank=32)[0]
    assert row["factor"] == pytest.approx(1, abs=1e-5)
    assert row["relative_error"] == pytest.approx(0, abs=1e-5)


def test_each_method_is_a_line_over_its_swept_option(whole: kobza.Result) -> None:
    by_rank, by_strength = whole.tables[0].figures
    assert (by_rank.x, by_strength.x) == ("rank", "strength")
    assert [line["x"] for line in by_rank.data["series"]] == [[8, 16, 24, 32]]
    assert [line["x"] for line in by_strength.data["series"]] == [[0.1, 0.4]]
    assert [mark["label"] for mark in by_rank.data["hlines"]] == ["unedited", "gzip -9", "xz -9e"]


def test_the_band_of_two_draws_spans_both(whole: kobza.Result) -> None:
    line = whole.tables[0].figures[1].data["series"][0]
    values = [row["bits_per_byte"] for row in whole.tables[0].where(strength=0.4)]
    assert (line["low"][1], line["high"][1]) == (min(values), max(values))


def test_the_run_folder_holds_recipe_result_and_pictures(kept: Path, whole: kobza.Result) -> None:
    assert Recipe.load(kept / "recipe.yaml").hash == whole.made_by["recipe_hash"]
    names = {path.name for path in (kept / "result").iterdir()}
    assert names == {"result.json", "report.html", "table-0.csv", "figure-0.svg", "figure-1.svg"}
    assert (kept / "result" / "table-0.csv").read_text() == csv_of(whole)


def test_the_same_command_measures_only_what_failed_or_is_missing(kept: Path, tmp_path: Path) -> None:
    shutil.copytree(kept, tmp_path / "run")
    with sqlite3.connect(tmp_path / "run" / runs.JOURNAL) as journal:
        keys = [key for (key,) in journal.execute("SELECT key FROM points ORDER BY key")]
        journal.execute("UPDATE points SET state = 'failed', outcome = NULL WHERE key = ?", (keys[3],))
        journal.execute("DELETE FROM points WHERE key = ?", (keys[5],))
    journal.close()
    again = sweep(Recipe.load(kept / "recipe.yaml"), workers=1, folder=tmp_path / "run")
    assert csv_of(again) == (kept / "result" / "table-0.csv").read_text()
    with Journal(tmp_path / "run" / runs.JOURNAL) as entered:
        assert [entry.claims for entry in entered.entries()] == [2 if key == keys[3] else 1 for key in keys]


def test_shards_merged_equal_the_whole(whole: kobza.Result, tmp_path: Path) -> None:
    wanted = Recipe.from_dict(whole.made_by["recipe"])
    part = sweep(wanted, workers=1, shard="1/2", folder=tmp_path / "part")
    assert part.made_by["missing"] == 4
    assert "4 of 9 points are missing" in part.tables[0].note
    merged = sweep(wanted, workers=1, shard="2/2", folder=tmp_path / "all", merge=[tmp_path / "part"])
    assert csv_of(merged) == csv_of(whole)
    with Journal(tmp_path / "all" / runs.JOURNAL) as journal:
        assert sum(entry.claims for entry in journal.entries()) == 4


def test_every_point_belongs_to_one_shard() -> None:
    class Fake:
        def __init__(self, edited: bool) -> None:
            self.point = self
            self.chain = chain("noise") if edited else ()

    works: Any = [Fake(False), *(Fake(True) for _ in range(11))]
    parts = [share(works, (i, 4)) for i in range(1, 5)]
    assert all(part[0] is works[0] for part in parts)
    assert [w for part in parts for w in part[1:]] == works[1:]


@pytest.mark.parametrize(
    ("word", "kind"), [("3", BadValue), ("a/b", BadValue), ("0/2", OutOfRange), ("3/2", OutOfRange)]
)
def test_a_shard_that_does_not_exist_is_refused(word: str, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        parse_shard(word)


def test_points_that_share_a_factorization_are_one_group() -> None:
    groups = [group(chain(c)) for c in ("lowrank:rank=4", "lowrank:rank=8", "lowrank:rank=8,center=true", "noise")]
    assert groups[0] == groups[1]
    assert len(set(groups)) == 3


def test_negative_numbers_are_refused() -> None:
    with pytest.raises(OutOfRange, match="none may be negative"):
        sweep(recipe("noise"), workers=-1)


def test_a_model_that_is_not_there_is_the_error_it_is(tmp_path: Path) -> None:
    with pytest.raises(kobza.KobzaError, match="nowhere"):
        sweep(recipe("noise:strength=0.1|0.2", open=str(tmp_path / "nowhere.gguf")), folder=tmp_path / "run")


def test_a_folder_of_another_recipe_is_refused(tmp_path: Path) -> None:
    runs.begin(recipe("noise"), tmp_path / "run")
    with pytest.raises(BadValue, match="holds the run of another recipe"):
        sweep(recipe("scaling"), folder=tmp_path / "run")


@pytest.mark.usefixtures("harm")
def test_a_dead_worker_fails_only_its_point(tmp_path: Path) -> None:
    once = tmp_path / "once"
    wanted = recipe("scaling:factor=2", "harm:how=kill|raise|eat", f"harm:how=exit,once={once}", "harm:size=1")
    result = sweep(wanted, workers=1, folder=tmp_path / "run", memory=4 << 30)
    failed = {row["how"]: row.get("failed") for row in result.tables[0] if row.get("failed")}
    assert failed == {
        "kill": "its worker was killed by signal 9 (2 tries)",
        "raise": "bug: ZeroDivisionError: division by zero",
        "eat": "OutOfMemory: not enough memory for this point.",
    }
    fine = [row for row in result.tables[0] if not row.get("failed")]
    assert [row["edit"] for row in fine] == ["unedited", "scaling", "harm", "harm"]
    assert all(row["bits_per_byte"] for row in fine)
    assert (result.made_by["failed"], result.made_by["done"]) == (3, 4)
    with pytest.raises(CheckFailed, match="3 of 7 points failed, the first: its worker was killed by signal 9"):
        require_whole(result)


@pytest.mark.usefixtures("harm")
def test_a_point_over_its_time_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRIES", 1)
    result = sweep(recipe("scaling:factor=2", "harm:how=hang"), workers=1, folder=tmp_path / "run", seconds=3)
    assert [row.get("failed") for row in result.tables[0]] == [None, None, "took longer than 3 s (1 tries)"]


def test_sweeps_on_other_texts_are_not_compared(kept: Path, whole: kobza.Result, runs_folder: Path) -> None:
    for name in ("run0", "run1", "run2"):
        shutil.copytree(kept, runs_folder / name)
    whole.made_by["texts"][0]["sha256"] = "of another text"
    whole.save(runs_folder / "run2" / "result", replace=True)
    assert set(runs.compare("run0", "run1")["bits_per_byte b-a"]) == {0}
    with pytest.raises(NotComparable, match="texts .* against .*'of another text'"):
        runs.compare("run0", "run2")


def test_workers_die_with_their_driver() -> None:
    with Pool() as pool:
        worker = pool.hire()
        assert worker.process.stdin is not None
        worker.process.stdin.close()
        assert worker.process.wait(timeout=30) == 0


# --- kill -9 -----------------------------------------------------------------------------------------------------


def start(kept: Path, folder: Path, workers: int = 1) -> subprocess.Popen[str]:
    """Start the undisturbed sweep's recipe in another folder."""
    call = [sys.executable, "-m", "kobza", "run", str(kept / "recipe.yaml"), "--folder", str(folder)]
    call += ["--workers", str(workers), "--csv", "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # jobs in the background are deaf
    )  # fmt: skip


def children(pid: int) -> list[int]:
    """Return the living children of a process (field 4 of /proc/PID/stat)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def done(folder: Path) -> int:
    """Return how many points are finished; read without opening the journal for writing."""
    try:
        raw = sqlite3.connect(f"file:{folder / runs.JOURNAL}?mode=ro", uri=True)
        try:
            return int(raw.execute("SELECT count(*) FROM points WHERE state = 'done'").fetchone()[0])
        finally:
            raw.close()
    except sqlite3.OperationalError:  # not there yet
        return 0


def wait_for(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    """Wait until `count` more points are done, and a random moment more."""
    count += done(folder)
    limit = time.monotonic() + 90
    while done(folder) < count and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.005)
    time.sleep(random.random() * 0.05)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers through /proc")
def test_a_sweep_killed_at_random_moments_ends_in_the_identical_table(kept: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for number, code in ((signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)):
        for _ in range(20):
            process = start(kept, folder)
            wait_for(process, folder, 1)
            workers = children(process.pid)
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
            if process.returncode != 0:
                break
            shutil.rmtree(folder)  # the sweep was through before the signal came: once more
        assert process.returncode == code, said
        assert "Traceback" not in said
        limit = time.monotonic() + 20
        while any(Path(f"/proc/{pid}").exists() for pid in workers):
            assert time.monotonic() < limit, "a worker outlives its driver"
            time.sleep(0.01)
    last = start(kept, folder, workers=2)
    wait_for(last, folder, 1)
    for pid in children(last.pid)[:1]:
        os.kill(pid, signal.SIGKILL)
    table, said = last.communicate(timeout=120)
    assert last.returncode == 0, said
    assert table == (kept / "result" / "table-0.csv").read_text()
    assert (folder / "result" / "table-0.csv").read_bytes() == (kept / "result" / "table-0.csv").read_bytes()


def test_two_drivers_on_one_journal_do_each_point_once(kept: Path, tmp_path: Path) -> None:
    both = [start(kept, tmp_path / "run") for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0] == (kept / "result" / "table-0.csv").read_text()
    with Journal(tmp_path / "run" / runs.JOURNAL) as journal:
        assert [entry.claims for entry in journal.entries()] == [1] * 9
