"""The journal: what the supervisor was about to do, written down before it does it.

A killed supervisor leaves rows without an end; the next one reads them and asks the drivers what is left.
Rows of another boot of this host are void: no process of theirs can live. They still name folders.

What is needed to go on with a VM (its key, how to reach it) and with a session (whose it is) is written
beside them. An instance is called warm only once it is connected, and no longer from before the first byte
of a session goes into it: what may have run anything is never taken for fresh.

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
from typing import Annotated, Final, Self

import msgspec

from claude_vm.drivers.api import Access
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.daemon.state.database import (
    connect,
    connect_again,
    copy,
    is_of_host,
    raise_reason,
    transaction,
)
from claude_vm.supervisor.daemon.state.records import (
    JournaledSession,
    LeftInstance,
    from_text,
    storable,
    to_text,
)

WARM = "warm"
"""The state of an instance that is connected and has not run anything. Else its state is its last effect."""

RUN = "run"
"""The state of an instance that a session was given. From here on it is never taken for fresh."""

RESUME = "resume"
"""What former versions wrote for RUN, if the session was taken over from another supervisor."""

SCHEMA: Final = (
    (
        """CREATE TABLE effects (
            seq INTEGER PRIMARY KEY,
            boot_id TEXT NOT NULL,
            at REAL NOT NULL,
            instance_id TEXT NOT NULL,
            driver TEXT NOT NULL,
            kind TEXT NOT NULL,
            session_id TEXT NOT NULL DEFAULT '',
            outcome TEXT
        )""",
        "CREATE INDEX open_effects ON effects (instance_id) WHERE outcome IS NULL",
        """CREATE TABLE instances (
            instance_id TEXT PRIMARY KEY,
            boot_id TEXT NOT NULL,
            driver TEXT NOT NULL,
            state TEXT NOT NULL
        )""",
        """CREATE TABLE worktree_locks (
            repository TEXT NOT NULL,
            session_id TEXT NOT NULL,
            PRIMARY KEY (repository, session_id)
        )""",
    ),
    (  # what is needed to go on with instances and sessions
        "ALTER TABLE instances ADD COLUMN made_at REAL NOT NULL DEFAULT 0",
        "ALTER TABLE instances ADD COLUMN key TEXT",
        "ALTER TABLE instances ADD COLUMN access TEXT",
        """CREATE TABLE sessions (
            session_id TEXT PRIMARY KEY,
            instance_id TEXT NOT NULL,
            project TEXT NOT NULL,
            label TEXT NOT NULL,
            pty INTEGER NOT NULL,
            created_at REAL NOT NULL,
            started INTEGER NOT NULL DEFAULT 0
        )""",
        "CREATE INDEX sessions_of ON sessions (instance_id)",
    ),
    ("ALTER TABLE sessions ADD COLUMN publish TEXT NOT NULL DEFAULT ''",),
    (  # some files that have had three steps have this table: it was released without a number of its own
        """CREATE TABLE IF NOT EXISTS memory (
            kind TEXT PRIMARY KEY,
            mib INTEGER NOT NULL,
            at REAL NOT NULL
        )""",
        "ALTER TABLE sessions RENAME COLUMN label TO command_text",
    ),
)
"""`key`, `access` and `kind` are records as JSON. A field that is added has a default, one that is gone is
not read; any other change of them is a step."""

_SETTINGS: Final = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=NORMAL",
    "PRAGMA wal_autocheckpoint=0",
    "PRAGMA cache_size=-256",  # KiB; nothing old is read, so more would only fill up
)

_BUSY_S: Final = 5.0

KEPT_ROWS = 10_000
"""Ended effects that are kept, for whoever asks what happened."""


KEPT_KINDS = 128
"""Kinds of VMs of which it is remembered what memory they take."""


_SessionRow = tuple[str, Annotated[str, msgspec.Meta(min_length=1)], str, str, int, float, str]
_InstanceRow = tuple[str, str, str, str, float, str | None, str | None]


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

        A former version's is brought to the present schema. A file that is damaged, or whose tables are not
        ours, is moved aside, not repaired: the drivers' own lists are enough to sweep.

        Raises:
            NewerSchemaError: A newer version wrote it. It is left alone.
            OSError: It can't be written.
            sqlite3.Error: The host does not let SQLite work for another reason.
        """
        remark = ""
        try:
            connection = _connect(path)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            if is_of_host(error):
                raise_reason(path, error)
                raise  # nothing is wrong with what is in it
            aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
            remark = f"the journal was damaged; it is kept as {aside.name}"
            connection = _connect(path)
        with contextlib.closing(connection):
            yield cls(connection, path, boot_id), remark

    @classmethod
    @contextlib.contextmanager
    def copied(cls, path: Path, boot_id: str) -> Iterator[tuple[Self, bool]]:
        """Copy a dead supervisor's journal into memory; what is written to the copy is gone with it.

        Yields it, and whether it is whole: one that can't be read has an empty copy. Nothing needs room, or a
        right to write.

        Raises:
            NewerSchemaError: A newer version wrote it.
        """
        is_whole = True
        try:
            connection = copy(path, SCHEMA)
        except (sqlite3.Error, OSError, UnicodeDecodeError):
            is_whole = False
            connection = connect(Path(":memory:"), SCHEMA, timeout_s=_BUSY_S)
        with contextlib.closing(connection):
            yield cls(connection, path, boot_id), is_whole

    def begin(
        self,
        *,
        instance_id: str,
        driver: str,
        kind: str,
        key: PoolKey | None = None,
        session: JournaledSession | None = None,
    ) -> int:
        """Write that an effect starts, before it does; return the row's number for `end`.

        `key` is given with an instance's first effect; `session` when one is about to run in it.
        """
        now = time.time()
        with transaction(self._connection):
            cursor = self._connection.execute(
                "INSERT INTO effects (boot_id, at, instance_id, driver, kind, session_id)"
                " VALUES (?,?,?,?,?,?)",
                (self._boot_id, now, instance_id, driver, kind, session.session_id if session else ""),
            )
            self._connection.execute(
                "INSERT INTO instances (instance_id, boot_id, driver, state, made_at, key)"
                " VALUES (?,?,?,?,?,?)"
                " ON CONFLICT (instance_id) DO UPDATE SET boot_id=excluded.boot_id, state=excluded.state",
                (instance_id, self._boot_id, driver, kind, now, to_text(key)),
            )
            if session is not None:
                self._connection.execute(
                    "INSERT OR REPLACE INTO sessions"  # it may have had another instance before
                    " (session_id, instance_id, project, command_text, pty, created_at, publish)"
                    " VALUES (?,?,?,?,?,?,?)",
                    (
                        session.session_id,
                        instance_id,
                        storable(session.project),
                        storable(session.command_text),
                        session.pty,
                        session.created_at,
                        " ".join(session.publish),
                    ),
                )
        return cursor.lastrowid or 0

    def end(self, row: int, outcome: str) -> None:
        """Write how the effect ended."""
        self._connection.execute("UPDATE effects SET outcome=? WHERE seq=?", (outcome, row))

    def note_access(self, instance_id: str, access: Access) -> None:
        """Write how an instance is reached."""
        self._connection.execute(
            "UPDATE instances SET access=? WHERE instance_id=?", (to_text(access), instance_id)
        )

    def note_warm(self, instance_id: str) -> None:
        """Write that an instance is connected and has run nothing."""
        self._connection.execute("UPDATE instances SET state=? WHERE instance_id=?", (WARM, instance_id))

    def note_started(self, session_id: str) -> None:
        """Write that a session's main command runs."""
        self._connection.execute("UPDATE sessions SET started=1 WHERE session_id=?", (session_id,))

    def forget(self, instance_id: str) -> None:
        """The instance is gone: nothing of it must be looked for."""
        with transaction(self._connection):
            self._connection.execute("DELETE FROM instances WHERE instance_id=?", (instance_id,))
            self._connection.execute("DELETE FROM sessions WHERE instance_id=?", (instance_id,))
            self._connection.execute(
                "UPDATE effects SET outcome='void' WHERE instance_id=? AND outcome IS NULL", (instance_id,)
            )

    def note_memory(self, kind: PoolKey, mib: int) -> None:
        """Write what a ready VM of a kind takes. Only the kinds that were noted last are kept."""
        with transaction(self._connection):
            self._connection.execute(
                "INSERT OR REPLACE INTO memory VALUES (?,?,?)", (to_text(kind), mib, time.time())
            )
            self._connection.execute(
                "DELETE FROM memory WHERE kind NOT IN (SELECT kind FROM memory ORDER BY at DESC LIMIT ?)",
                (KEPT_KINDS,),
            )

    def memory(self) -> list[tuple[PoolKey, int]]:
        """Return what ready VMs took so far, in MiB by kind, the kinds that were noted last at the end."""
        rows = self._connection.execute("SELECT kind, mib FROM memory ORDER BY at").fetchall()
        found = [(from_text(kind, PoolKey), mib) for kind, mib in rows if isinstance(kind, str)]
        return [(kind, mib) for kind, mib in found if kind is not None and isinstance(mib, int) and mib > 0]

    def left_instances(self) -> list[LeftInstance]:
        """Return the instances of a former supervisor that were not deleted."""
        sessions: dict[str, JournaledSession] = {}
        damaged: set[str] = set()
        for row in self._connection.execute(
            "SELECT instance_id, session_id, project, command_text, pty, created_at, publish"
            " FROM sessions WHERE started"
        ):
            try:
                instance_id, name, project, command_text, pty, at, publish = msgspec.convert(row, _SessionRow)
            except msgspec.ValidationError:  # so much of it that it can be told to have been there
                damaged.add(str(row[0]))
                sessions[str(row[0])] = JournaledSession(str(row[1]) or "?", "?", "?", False, time.time())
            else:
                sessions[instance_id] = JournaledSession(
                    name, project, command_text, bool(pty), at, tuple(publish.split())
                )
        found: list[LeftInstance] = []
        for row in self._connection.execute(
            "SELECT instance_id, driver, state, boot_id, made_at, key, access FROM instances"
        ):
            try:
                instance_id, driver, state, boot_id, made_at, key, access = msgspec.convert(row, _InstanceRow)
            except msgspec.ValidationError:
                instance_id, driver, state, boot_id = map(str, row[:4])
                made_at, key, access = 0.0, None, None
            found.append(
                LeftInstance(
                    instance_id=instance_id,
                    driver=driver,
                    state=state,
                    same_boot=boot_id == self._boot_id,
                    made_at=made_at,
                    key=None if instance_id in damaged else from_text(key, PoolKey),
                    access=from_text(access, Access),
                    session=sessions.get(instance_id),
                )
            )
        return found

    def lock_worktrees(self, repository: str, session_id: str) -> None:
        """Write that a session is about to lock a repository's worktrees."""
        self._connection.execute(
            "INSERT OR IGNORE INTO worktree_locks VALUES (?,?)", (repository, session_id)
        )

    def unlock_worktrees(self, repository: str, session_id: str) -> None:
        """Forget a session's lock of a repository."""
        self._connection.execute(
            "DELETE FROM worktree_locks WHERE repository=? AND session_id=?", (repository, session_id)
        )

    def locked_repositories(self) -> list[tuple[str, str]]:
        """Return (repository, session) of the locks that nobody has given back."""
        return self._connection.execute("SELECT repository, session_id FROM worktree_locks").fetchall()

    def checkpoint(self) -> None:
        """Drop old rows, move the log into the database and sync it.

        Runs in a thread, on a connection of its own.
        """
        with contextlib.closing(connect_again(self._path, timeout_s=1, writable=True)) as connection:
            _prune(connection)
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")


def _connect(path: Path) -> sqlite3.Connection:
    connection = connect(path, SCHEMA, settings=_SETTINGS, timeout_s=_BUSY_S)
    try:
        # Who can't write here must not begin: a supervisor that writes nothing stands in then.
        connection.execute(f"PRAGMA user_version={len(SCHEMA)}")
        _prune(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _prune(connection: sqlite3.Connection) -> None:
    """Drop all but the last ended effects; where that is done often, it holds nobody up."""
    connection.execute(
        "DELETE FROM effects WHERE outcome IS NOT NULL AND seq <= (SELECT max(seq) FROM effects) - ?",
        (KEPT_ROWS,),
    )
