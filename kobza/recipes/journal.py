"""The journal of a sweep: which points are to do, under way, done or failed, kept in one SQLite file.

A point is known by the hash of everything that decides its outcome. A finished point is on the disk before
anyone hears of it (write-ahead log, synchronous FULL), so a kill at any moment costs at most the points that were
under way. Several processes may work on one journal: a point is claimed with a lease, and a claim whose owner is
dead or whose lease has run out may be taken over.

Source for the way of journalling: https://www.sqlite.org/wal.html
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kobza.core.errors import CannotWrite, Corrupt, InputRefused, MissingFile
from kobza.core.files import sha256

SCHEMA = 1
APPLICATION = 0x6B6F627A  # "kobz"; marks the file as ours, see PRAGMA application_id
LEASE = 60.0  # seconds a claim holds without being renewed
BUSY = 60.0  # seconds to wait for another process's write

_CREATE = """
CREATE TABLE IF NOT EXISTS points (
    key TEXT PRIMARY KEY,
    point TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('todo', 'running', 'done', 'failed')),
    owner TEXT NOT NULL DEFAULT '',
    lease REAL NOT NULL DEFAULT 0,
    claims INTEGER NOT NULL DEFAULT 0,
    outcome TEXT,
    digest TEXT,
    reason TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID
"""


@dataclass(frozen=True)
class Entry:
    """One point as the journal knows it.

    Attributes:
        key: hash of everything that decides the outcome.
        point: what is to be done, as plain data.
        state: "todo", "running", "done" or "failed".
        owner: who claimed it last, "host:pid:birth".
        claims: how often it was begun [count].
        outcome: what came out, as plain data; None unless done.
        reason: why it failed; empty unless failed.
    """

    key: str
    point: dict[str, Any]
    state: str
    owner: str
    claims: int
    outcome: dict[str, Any] | None
    reason: str


class Journal:
    """An open journal; close it, or use it in a `with`.

    Args:
        path: the SQLite file; made if absent.
        create: make it if absent; otherwise an absent one is an error.

    Raises:
        MissingFile: absent, and `create` is False.
        Corrupt: the file is damaged, or not a journal of kobza.
        InputRefused: a newer kobza wrote it.
        CannotWrite: its folder is missing, read-only or full.
    """

    def __init__(self, path: str | Path, *, create: bool = True) -> None:
        self.path = Path(path)
        if not create and not self.path.is_file():
            raise MissingFile(f"there is no journal '{self.path}'.", "See all runs: kobza runs")
        with self._guard():
            self._db = sqlite3.connect(self.path, timeout=BUSY, isolation_level=None)
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def add(self, points: Mapping[str, Mapping[str, Any]]) -> int:
        """Enter points under their keys; those already known stay as they are. Returns how many were new."""
        with self._guard(), self._transaction():
            before = self._db.total_changes
            self._db.executemany(
                "INSERT OR IGNORE INTO points (key, point, state) VALUES (?, ?, 'todo')",
                [(key, plain(point)) for key, point in points.items()],
            )
            return self._db.total_changes - before

    def claim(self, key: str, owner: str, *, lease: float = LEASE) -> bool:
        """Take a point to work on it; False if it is finished or somebody living holds it.

        Args:
            key: the point.
            owner: who takes it; see `me`.
            lease: how long the claim holds without `renew` [seconds].
        """
        with self._guard(), self._transaction():
            row = self._db.execute("SELECT state, owner, lease FROM points WHERE key = ?", (key,)).fetchone()
            if row is None or not (row[0] == "todo" or (row[0] == "running" and abandoned(row[1], row[2]))):
                return False
            self._db.execute(
                "UPDATE points SET state = 'running', owner = ?, lease = ?, claims = claims + 1 WHERE key = ?",
                (owner, time.time() + lease, key),
            )
            return True

    def renew(self, keys: Iterable[str], owner: str, *, lease: float = LEASE) -> None:
        """Prolong the claims that `owner` holds on `keys`."""
        until = time.time() + lease
        with self._guard(), self._transaction():
            self._db.executemany(
                "UPDATE points SET lease = ? WHERE key = ? AND state = 'running' AND owner = ?",
                [(until, key, owner) for key in keys],
            )

    def finish(self, key: str, outcome: Mapping[str, Any]) -> None:
        """Write down the outcome of a point. The first outcome stays: a second one changes nothing."""
        text = plain(outcome)
        with self._guard():
            self._db.execute(
                "UPDATE points SET state = 'done', outcome = ?, digest = ?, reason = '' "
                "WHERE key = ? AND state != 'done'",
                (text, sha256(text.encode()), key),
            )

    def fail(self, key: str, reason: str) -> None:
        """Write down that a point cannot be done, and why."""
        with self._guard():
            self._db.execute(
                "UPDATE points SET state = 'failed', reason = ? WHERE key = ? AND state != 'done'", (reason, key)
            )

    def release(self, owner: str) -> int:
        """Give back whatever `owner` holds; returns how many points that were."""
        with self._guard():
            return self._db.execute(
                "UPDATE points SET state = 'todo', lease = 0 WHERE state = 'running' AND owner = ?", (owner,)
            ).rowcount

    def hand_back(self, key: str, owner: str) -> None:
        """Put one point that `owner` holds back among those to do."""
        with self._guard():
            self._db.execute(
                "UPDATE points SET state = 'todo', lease = 0 WHERE key = ? AND state = 'running' AND owner = ?",
                (key, owner),
            )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep every other process from writing to the journal during the block; a dead one keeps nobody."""
        with self._guard(), self._transaction():
            yield

    def retry(self, keys: Iterable[str]) -> None:
        """Put the failed ones of `keys` back among those to do."""
        with self._guard(), self._transaction():
            self._db.executemany(
                "UPDATE points SET state = 'todo', reason = '' WHERE state = 'failed' AND key = ?", [(k,) for k in keys]
            )

    def entry(self, key: str) -> Entry | None:
        """Return what is known of a point.

        Raises:
            Corrupt: its outcome does not have the hash written down beside it.
        """
        with self._guard():
            row = self._db.execute(
                "SELECT key, point, state, owner, claims, outcome, digest, reason FROM points WHERE key = ?", (key,)
            ).fetchone()
        return self._entry(row) if row else None

    def entries(self) -> list[Entry]:
        """Return every point, in the order of the keys."""
        with self._guard():
            rows = self._db.execute(
                "SELECT key, point, state, owner, claims, outcome, digest, reason FROM points ORDER BY key"
            ).fetchall()
        return [self._entry(row) for row in rows]

    def states(self, keys: Iterable[str]) -> dict[str, str]:
        """Return the state of each of `keys`; an unknown one is left out."""
        wanted = set(keys)
        with self._guard():
            rows = self._db.execute("SELECT key, state FROM points").fetchall()
        return {key: state for key, state in rows if key in wanted}

    def merge(self, other: str | Path) -> int:
        """Take over the finished points of another journal; returns how many were new here.

        Every outcome is checked against the hash written beside it. A point finished here as well must have the same
        outcome there, or the two machines disagree.

        Raises:
            Corrupt: an outcome is damaged, or one point has two outcomes.
        """
        with Journal(other, create=False) as source:
            found = [e for e in source.entries() if e.state == "done" and e.outcome is not None]
        taken = 0
        for entry in found:
            here = self.entry(entry.key)
            if here is not None and here.state == "done":
                self._compare(here, entry, other)
                continue
            self.add({entry.key: entry.point})
            self.finish(entry.key, entry.outcome or {})
            taken += 1
        return taken

    def _compare(self, here: Entry, there: Entry, other: str | Path) -> None:
        if here.outcome != there.outcome:
            raise Corrupt(
                f"point {here.key[:12]} has one outcome in '{self.path}' and another in '{other}'.",
                "Two builds or machines disagree: merge journals of one kind of machine, or measure anew.",
            )

    def _prepare(self) -> None:
        db = self._db
        # subtle: one transaction, or a journal that another process is just making would look half made
        with self._transaction():
            version, application = (db.execute(f"PRAGMA {p}").fetchone()[0] for p in ("user_version", "application_id"))
            tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if tables:
                self._refuse_foreign(version, application)
            else:
                db.execute(_CREATE)
                db.execute(f"PRAGMA application_id = {APPLICATION}")
                db.execute(f"PRAGMA user_version = {SCHEMA}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")

    def _refuse_foreign(self, version: int, application: int) -> None:
        if application == APPLICATION and version > SCHEMA:
            raise InputRefused(
                f"the journal '{self.path}' was written by a newer kobza (schema {version}; this one reads {SCHEMA}).",
                "Update kobza: pip install -U kobza",
            )
        if application != APPLICATION or version != SCHEMA:
            raise Corrupt(f"'{self.path}' is not a journal of kobza.", "Name another file; this one was not touched.")
        damage = self._db.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if damage != "ok":
            raise self._corrupt(damage)

    def _entry(self, row: tuple[Any, ...]) -> Entry:
        key, point, state, owner, claims, outcome, digest, reason = row
        if outcome is not None and sha256(outcome.encode()) != digest:
            raise self._corrupt(f"the outcome of point {key[:12]} does not match its hash")
        found = json.loads(outcome) if outcome is not None else None
        return Entry(key, json.loads(point), state, owner, claims, found, reason)

    def _corrupt(self, what: object) -> Corrupt:
        hint = f"Move it away and run the command again, which measures anew: mv '{self.path}' '{self.path}.damaged'"
        return Corrupt(f"the journal '{self.path}' is damaged: {what}.", hint)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if "malformed" in str(error):
                raise self._corrupt(error) from None
            hint = "What was finished before stays; free some room or wait, then run the command again."
            raise CannotWrite(f"cannot write the journal '{self.path}': {error}.", hint) from None
        except sqlite3.DatabaseError as error:
            raise self._corrupt(error) from None


def me() -> str:
    """Return this process as an owner, "host:pid:birth"; the birth tells it from a later process of the same id."""
    return f"{socket.gethostname()}:{os.getpid()}:{_birth(os.getpid())}"


def abandoned(owner: str, lease: float) -> bool:
    """Say whether a claim may be taken over.

    Args:
        owner: "host:pid:birth" of the claimant.
        lease: when the claim ends [seconds since 1970].

    On the claimant's own machine its death is seen at once; elsewhere the lease decides.
    """
    host, pid, birth = owner.rsplit(":", 2) if owner.count(":") >= 2 else ("", "0", "")
    if host == socket.gethostname() and pid.isdigit():
        return not _alive(int(pid)) or _birth(int(pid)) != birth or time.time() > lease
    return time.time() > lease


def plain(value: object) -> str:
    """Return `value` as JSON in one fixed spelling (sorted keys, no spaces), so that equal data have equal hashes."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it lives, but belongs to another user
        return True
    return True


def _birth(pid: int) -> str:
    # field 22 of /proc/PID/stat, counted after the name in parentheses, which may hold spaces (proc(5))
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
