"""The journal: nothing finished is lost, nothing is done twice, nothing damaged is believed."""

import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kobza.core.errors import CannotWrite, Corrupt, InputRefused, MissingFile
from kobza.recipes import journal as module
from kobza.recipes.journal import Journal, abandoned, me, plain

POINT = {"chain": ["noise"], "text": "x"}
OUTCOME = {"readings": [{"name": "bits_per_byte", "value": 1.0437}], "changes": []}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def test_a_finished_point_survives_closing(path: Path) -> None:
    with Journal(path) as journal:
        journal.add({"a": POINT, "b": POINT})
        assert journal.claim("a", me())
        journal.finish("a", OUTCOME)
    with Journal(path) as journal:
        entry = journal.entry("a")
        assert entry is not None and (entry.state, entry.outcome, entry.claims) == ("done", OUTCOME, 1)
        assert journal.states(["a", "b", "c"]) == {"a": "done", "b": "todo"}


def test_adding_again_changes_nothing(path: Path) -> None:
    with Journal(path) as journal:
        assert journal.add({"a": POINT}) == 1
        journal.finish("a", OUTCOME)
        assert journal.add({"a": {"other": 1}, "b": POINT}) == 1
        assert [(e.key, e.point, e.state) for e in journal.entries()] == [("a", POINT, "done"), ("b", POINT, "todo")]


def test_a_point_is_claimed_once(path: Path) -> None:
    with Journal(path) as journal:
        journal.add({"a": POINT})
        assert journal.claim("a", me())
        assert not journal.claim("a", "elsewhere:1:1")
        assert not journal.claim("unknown", me())
        journal.finish("a", OUTCOME)
        assert not journal.claim("a", me())


def test_what_is_given_back_can_be_claimed(path: Path) -> None:
    with Journal(path) as journal:
        journal.add({"a": POINT, "b": POINT, "c": POINT})
        for key in "abc":
            journal.claim(key, me())
        journal.hand_back("a", me())
        assert journal.claim("a", "elsewhere:1:1")
        assert journal.release(me()) == 2
        assert journal.claim("b", "elsewhere:1:1")


def test_a_claim_of_a_dead_process_is_taken_over_at_once(path: Path) -> None:
    code = (
        "import sys; from kobza.recipes.journal import *; j = Journal(sys.argv[1]); "
        "j.add({'a': {}}); assert j.claim('a', me()); print(me())"
    )
    owner = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True).stdout
    assert abandoned(owner.strip(), time.time() + 1000)
    with Journal(path) as journal:
        assert journal.claim("a", me())


def test_a_claim_from_another_machine_holds_until_its_lease_ends(path: Path) -> None:
    with Journal(path) as journal:
        journal.add({"a": POINT})
        assert journal.claim("a", "elsewhere:1:1", lease=0.2)
        assert not journal.claim("a", me())
        journal.renew(["a"], "elsewhere:1:1", lease=0.4)
        time.sleep(0.25)
        assert not journal.claim("a", me())
        time.sleep(0.25)
        assert journal.claim("a", me())


def test_a_process_of_the_same_id_born_later_is_another() -> None:
    host, pid, birth = me().rsplit(":", 2)
    assert not abandoned(me(), time.time() + 10)
    if birth:  # only where /proc tells it
        assert abandoned(f"{host}:{pid}:{birth}1", time.time() + 10)


def test_the_first_outcome_stays(path: Path) -> None:
    with Journal(path) as journal:
        journal.add({"a": POINT})
        journal.finish("a", OUTCOME)
        journal.finish("a", {"readings": []})
        journal.fail("a", "late")
        entry = journal.entry("a")
        assert entry is not None and entry.state == "done" and entry.outcome == OUTCOME


def test_a_failed_point_can_be_tried_again(path: Path) -> None:
    with Journal(path) as journal:
        journal.add({"a": POINT})
        journal.fail("a", "its worker was killed")
        entry = journal.entry("a")
        assert entry is not None and (entry.state, entry.reason) == ("failed", "its worker was killed")
        assert not journal.claim("a", me())
        journal.retry(["a"])
        assert journal.claim("a", me())


def test_merging_takes_over_what_is_finished(path: Path, tmp_path: Path) -> None:
    with Journal(tmp_path / "other") as other:
        other.add({"a": POINT, "b": POINT})
        other.finish("a", OUTCOME)
    with Journal(path) as journal:
        journal.add({"a": POINT})
        assert journal.merge(tmp_path / "other") == 1
        assert journal.merge(tmp_path / "other") == 0
        assert journal.states("ab") == {"a": "done"}


def test_two_outcomes_of_one_point_are_refused(path: Path, tmp_path: Path) -> None:
    with Journal(tmp_path / "other") as other, Journal(path) as journal:
        for place, value in ((other, 1), (journal, 2)):
            place.add({"a": POINT})
            place.finish("a", {"value": value})
        with pytest.raises(Corrupt, match="one outcome in .* and another in"):
            journal.merge(tmp_path / "other")


def test_merging_what_is_not_there_is_refused(path: Path, tmp_path: Path) -> None:
    with Journal(path) as journal, pytest.raises(MissingFile, match="no journal"):
        journal.merge(tmp_path / "none")


def test_a_changed_outcome_is_noticed(path: Path) -> None:
    with Journal(path) as journal:
        journal.add({"a": POINT})
        journal.finish("a", OUTCOME)
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE points SET outcome = replace(outcome, '1.0437', '1.0337')")
    raw.close()
    with Journal(path) as journal, pytest.raises(Corrupt, match="does not match its hash"):
        journal.entry("a")


@pytest.mark.parametrize("damage", ["text", "truncated", "zeros", "foreign", "flipped"])
def test_a_damaged_journal_is_refused_and_left_as_it_is(path: Path, damage: str) -> None:
    with Journal(path) as journal:
        journal.add({str(i): POINT for i in range(400)})
    data = bytearray(path.read_bytes())
    if damage == "text":
        data = bytearray(b"not a database at all, but long enough to look" * 40)
    elif damage == "truncated":
        del data[len(data) // 2 :]
    elif damage == "zeros":
        data[4096:8192] = bytes(4096)
    elif damage == "flipped":
        for at in range(4096, len(data), 97):
            data[at] ^= 0xFF
    if damage == "foreign":
        path.unlink()
        with sqlite3.connect(path) as raw:
            raw.execute("CREATE TABLE t (x)")
        raw.close()
        data = bytearray(path.read_bytes())
    else:
        path.write_bytes(data)
    with pytest.raises(Corrupt, match="damaged|not a journal"):
        Journal(path)
    assert path.read_bytes() == data


def test_a_newer_journal_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(module, "SCHEMA", 7)
        Journal(path).close()
    with pytest.raises(InputRefused, match=r"newer kobza \(schema 7; this one reads 1\)"):
        Journal(path)


def test_a_journal_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotWrite, match="unable to open"):
        Journal(tmp_path / "none" / "journal.sqlite")
    with pytest.raises(MissingFile):
        Journal(tmp_path / "journal.sqlite", create=False)


def test_a_copy_taken_while_writing_is_sound(path: Path, tmp_path: Path) -> None:
    with Journal(path) as journal:
        journal.add({str(i): POINT for i in range(50)})
        journal.finish("7", OUTCOME)
        for name in (path.name, path.name + "-wal"):
            shutil.copy(path.with_name(name), tmp_path / ("copy" + name[len(path.name) :]))
        with Journal(tmp_path / "copy") as copied:
            entry = copied.entry("7")
            assert entry is not None and entry.outcome == OUTCOME


def test_equal_data_have_one_spelling() -> None:
    assert plain({"b": 1, "a": [0.1, None]}) == plain({"a": [0.1, None], "b": 1}) == '{"a":[0.1,null],"b":1}'


CLAIM_ALL = """
import sys
from kobza.recipes.journal import Journal, me
with Journal(sys.argv[1]) as journal:
    journal.add({str(i): {} for i in range(60)})
    for i in range(60):
        if journal.claim(str(i), me()):
            journal.finish(str(i), {"by": me()})
            print(i)
"""


def test_four_processes_do_each_point_once(path: Path) -> None:
    call = [sys.executable, "-c", CLAIM_ALL, str(path)]
    workers = [subprocess.Popen(call, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    shares = [worker.communicate(timeout=60)[0].split() for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 4
    assert sorted((key for share in shares for key in share), key=int) == [str(i) for i in range(60)]
