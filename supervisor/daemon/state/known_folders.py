"""The folders that are remembered, in a database of their own: what each was, and whether guests could write.

One file in the data folder, for all supervisors of a home and for all versions from now on. It is no journal:
nothing in it ends with a session or with its supervisor. What a folder was when it was first used counts for
ever, and a folder that was a writable mount once may still hold what a guest left there.

A commit syncs: after a power failure a guest's writes may be there, so must be the row that says that there
was a guest. Rows are written at a folder's first use, so that costs nothing later. Every command reads all of
it, and again only when somebody has written.
"""

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from claude_vm.context.folders import Folder, Known
from claude_vm.supervisor.daemon.errors import CommandError
from claude_vm.supervisor.daemon.state.database import NewerSchemaError, connect, number, transaction

NAME: Final = "places.db"

BUSY_S: Final = 2.0
"""How long another supervisor's commit is waited for, in seconds."""

SCHEMA: Final = (
    (
        """CREATE TABLE folders (
            path BLOB PRIMARY KEY,
            reach BLOB NOT NULL,
            template_root BLOB NOT NULL,
            writable INTEGER NOT NULL,
            identity TEXT NOT NULL,
            changed_at REAL NOT NULL
        ) WITHOUT ROWID""",
    ),
)
"""`reach` has paths with NULs between them; `identity` is ``device:inode`` as text: SQLite has 63 bits."""


class KnownFolders:
    """What is remembered of folders. For any thread: programs are looked for in workers, too."""

    def __init__(self, home: Path) -> None:
        self._path = home / NAME
        self._one_at_a_time = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._version = -1
        self._known = Known()

    def known(self) -> Known:
        """Return all that is remembered now.

        Raises:
            CommandError: The file can't be read, is damaged, or a newer version's.
        """
        with self._mapped("read"):
            connection = self._connect(create=False)
            if connection is None:
                return self._known
            version = number(connection, "PRAGMA data_version")
            if version != self._version:
                self._known = Known(_folders(connection))
                self._version = version
            return self._known

    def remember(self, folders: Iterable[Folder]) -> None:
        """Write folders down; a folder that a guest could write stays one. Nothing is done for none.

        Raises:
            CommandError: They can't be written: a guest must not get them then.
        """
        rows = [_row(folder) for folder in folders]
        if not rows:
            return
        with self._mapped("written"):
            connection = self._connect(create=True)
            if connection is None:  # pragma: no cover - it was made
                raise sqlite3.OperationalError("unable to open database file")
            with transaction(connection):
                connection.executemany(
                    "INSERT INTO folders VALUES (?,?,?,?,?,?) ON CONFLICT (path) DO UPDATE SET"
                    " reach=excluded.reach, template_root=excluded.template_root,"
                    " writable=max(writable, excluded.writable),"
                    " identity=iif(excluded.writable, excluded.identity, identity),"
                    " changed_at=excluded.changed_at",
                    rows,
                )
            self._version = -1  # what one writes oneself changes no number

    def close(self) -> None:
        """Close the file."""
        with self._one_at_a_time:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _connect(self, *, create: bool) -> sqlite3.Connection | None:
        """Return the connection to the file that is there now; None when there is none and none is wanted."""
        try:
            found = self._path.stat()
            # An empty one was made when there was no room for more: reading it must write nothing.
            inode = found.st_ino if found.st_size or create else 0
        except FileNotFoundError:
            inode = 0
        if self._connection is not None and inode == self._inode:
            return self._connection
        self.close()
        self._known, self._version = Known(), -1
        if not inode:
            if not create:
                return None
            # Before SQLite has it: closing a second descriptor would take SQLite's locks away.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
            inode = self._path.stat().st_ino
        self._connection = connect(self._path, SCHEMA, timeout_s=BUSY_S, any_thread=True)
        self._inode = inode
        return self._connection

    @contextlib.contextmanager
    def _mapped(self, done: str) -> Iterator[None]:
        try:
            with self._one_at_a_time:
                yield
        except NewerSchemaError as error:
            self.close()
            raise CommandError(error.code, str(error), hint=error.hint) from error
        except (sqlite3.Error, OSError, ValueError, TypeError, AttributeError) as error:
            self.close()
            raise CommandError(
                "places-failed",
                f"the record of your folders can't be {done}: {error} ({self._path})",
                hint="make room, or allow claude-vm to read and write it; if it is damaged, move it away:"
                " all folders then count as new",
            ) from error


def _folders(connection: sqlite3.Connection) -> Iterator[Folder]:
    for path, reach, root, writable, identity in connection.execute(
        "SELECT path, reach, template_root, writable, identity FROM folders"
    ):
        device, _, inode = identity.partition(":")
        yield Folder(
            path=Path(os.fsdecode(path)),
            reach=tuple(Path(os.fsdecode(part)) for part in reach.split(b"\0")),
            template_root=Path(os.fsdecode(root)),
            writable=bool(writable),
            identity=(int(device), int(inode)),
        )


def _row(folder: Folder) -> tuple[bytes, bytes, bytes, bool, str, float]:
    return (
        os.fsencode(folder.path),
        b"\0".join(os.fsencode(path) for path in folder.reach),
        os.fsencode(folder.template_root),
        folder.writable,
        f"{folder.identity[0]}:{folder.identity[1]}",
        time.time(),
    )
