"""The journal: what the supervisor was about to do, written down before it does it.

A killed supervisor leaves rows without an end; the next one reads them and asks the drivers what is left.
Rows of another boot of this host are void: no process of theirs can live. They still name folders.

SQLite in WAL mode with ``synchronous=NORMAL``: a commit is a write without a sync (tens of microseconds), so
it happens on the event loop, before the effect starts. It survives the death of the process, which is what
the journal is for; a power failure may take the last rows, and the processes with them. Checkpoints sync,
so they run in a thread, on a connection of their own.
"""

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import msgspec

SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS effects (
    seq INTEGER PRIMARY KEY,
    boot_id TEXT NOT NULL,
    at REAL NOT NULL,
    instance_id TEXT NOT NULL,
    driver TEXT NOT NULL,
    kind TEXT NOT NULL,
    session_id TEXT NOT NULL DEFAULT '',
    outcome TEXT
);
CREATE INDEX IF NOT EXISTS open_effects ON effects (instance_id) WHERE outcome IS NULL;
CREATE TABLE IF NOT EXISTS instances (
    instance_id TEXT PRIMARY KEY,
    boot_id TEXT NOT NULL,
    driver TEXT NOT NULL,
    state TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS worktree_locks (
    repository TEXT NOT NULL,
    session_id TEXT NOT NULL,
    PRIMARY KEY (repository, session_id)
);
"""

KEPT_ROWS = 10_000
"""Ended effects that are kept, for whoever asks what happened."""


class LeftInstance(msgspec.Struct, frozen=True):
    """An instance that the journal knows and that nobody has deleted. `same_boot`: its processes may live."""

    instance_id: str
    driver: str
    state: str
    same_boot: bool


class Journal:
    """One supervisor's journal. Not thread-safe but for `checkpoint`; belongs to who holds the lock."""

    def __init__(self, connection: sqlite3.Connection, path: Path, boot_id: str) -> None:
        self._connection = connection
        self._path = path
        self._boot_id = boot_id

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path, boot_id: str) -> Iterator[tuple[Self, str]]:
        """Open or create the journal; yields it with a remark for people ("" when all is well).

        A damaged file is moved aside, not repaired: the drivers' own lists are enough to sweep.

        Raises:
            sqlite3.Error: The folder can't be written.
        """
        remark = ""
        try:
            connection = _connect(path)
        except sqlite3.OperationalError:
            raise  # a full disk, a lock: nothing is wrong with what is in it
        except sqlite3.DatabaseError:
            aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
            remark = f"the journal was damaged; it is kept as {aside.name}"
            connection = _connect(path)
        try:
            connection.execute(
                "DELETE FROM effects WHERE outcome IS NOT NULL AND seq <= (SELECT max(seq) FROM effects) - ?",
                (KEPT_ROWS,),
            )
            yield cls(connection, path, boot_id), remark
        finally:
            connection.close()

    def begin(self, *, instance_id: str, driver: str, kind: str, session_id: str = "") -> int:
        """Write that an effect starts, before it does; return the row's number for `end`."""
        with self._transaction():
            cursor = self._connection.execute(
                "INSERT INTO effects (boot_id, at, instance_id, driver, kind, session_id)"
                " VALUES (?,?,?,?,?,?)",
                (self._boot_id, time.time(), instance_id, driver, kind, session_id),
            )
            self._connection.execute(
                "INSERT INTO instances (instance_id, boot_id, driver, state) VALUES (?,?,?,?)"
                " ON CONFLICT (instance_id) DO UPDATE SET boot_id=excluded.boot_id, state=excluded.state",
                (instance_id, self._boot_id, driver, kind),
            )
        return cursor.lastrowid or 0

    def end(self, row: int, outcome: str) -> None:
        """Write how the effect ended."""
        self._connection.execute("UPDATE effects SET outcome=? WHERE seq=?", (outcome, row))

    def forget(self, instance_id: str) -> None:
        """The instance is gone: nothing of it must be looked for."""
        with self._transaction():
            self._connection.execute("DELETE FROM instances WHERE instance_id=?", (instance_id,))
            self._connection.execute(
                "UPDATE effects SET outcome='void' WHERE instance_id=? AND outcome IS NULL", (instance_id,)
            )

    def left_instances(self) -> list[LeftInstance]:
        """Return the instances of a former supervisor that were not deleted."""
        rows = self._connection.execute(
            "SELECT instance_id, driver, state, boot_id FROM instances"
        ).fetchall()
        return [
            LeftInstance(instance_id=i, driver=d, state=s, same_boot=b == self._boot_id)
            for i, d, s, b in rows
        ]

    def lock_worktrees(self, repository: str, session_id: str) -> None:
        """Write that a session is about to lock a repository's worktrees."""
        self._connection.execute(
            "INSERT OR IGNORE INTO worktree_locks VALUES (?,?)", (repository, session_id)
        )

    def unlock_worktrees(self, repository: str, session_id: str) -> bool:
        """Forget a session's lock; return whether no session locks this repository any more."""
        with self._transaction():
            self._connection.execute(
                "DELETE FROM worktree_locks WHERE repository=? AND session_id=?", (repository, session_id)
            )
            left = self._connection.execute(
                "SELECT count(*) FROM worktree_locks WHERE repository=?", (repository,)
            ).fetchone()
        return bool(left[0] == 0)

    def locked_repositories(self) -> list[tuple[str, str]]:
        """Return (repository, session) of the locks that nobody has given back."""
        return self._connection.execute("SELECT repository, session_id FROM worktree_locks").fetchall()

    def checkpoint(self) -> None:
        """Move the log into the database and sync it. Runs in a thread, on a connection of its own."""
        with contextlib.closing(sqlite3.connect(self._path, timeout=1)) as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=5)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA wal_autocheckpoint=0")
        _check(connection)
        connection.executescript(_SCHEMA)
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    except BaseException:
        connection.close()
        raise
    return connection


def _check(connection: sqlite3.Connection) -> None:
    """Raises DatabaseError if the file is damaged, or another version's."""
    if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
        raise sqlite3.DatabaseError("quick_check failed")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version not in {0, SCHEMA_VERSION}:
        raise sqlite3.DatabaseError(f"schema version {version}")
