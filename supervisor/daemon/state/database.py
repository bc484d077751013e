"""A database's file: why the host does not let SQLite work on it, and a copy of it that needs no room."""

import contextlib
import errno
import os
import sqlite3
import tempfile
from pathlib import Path
from typing import Final

_HOSTS_ERRORS: Final = frozenset(
    {
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
    }
)
"""What SQLite reports when the host does not let it work. Everything else is about what is in the file."""

_REASONS: Final = {
    sqlite3.SQLITE_PERM: errno.EACCES,
    sqlite3.SQLITE_READONLY: errno.EACCES,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_FULL: errno.ENOSPC,
}
"""What the system would say, where a file beside the journal can be written."""

_LEAST_ROOM = 256 * 1024
"""Free bytes with which the journal has all that it needs."""


def is_of_host(error: Exception) -> bool:
    """Tell whether an error of SQLite's is the host's, and not about what is in the file."""
    return _code(error) in _HOSTS_ERRORS


def raise_reason(path: Path, error: Exception) -> None:
    """Raise what the system says, where SQLite has only words of its own: a quota is an I/O error to it.

    Raises:
        OSError: What keeps the file from being written.
    """
    try:
        with tempfile.TemporaryFile(dir=path.parent, buffering=0) as probe:
            rest = _LEAST_ROOM
            while rest:
                rest -= probe.write(bytes(rest))
    except OSError as reason:
        raise OSError(reason.errno, reason.strerror, str(path)) from error
    number = _REASONS.get(_code(error))
    if number is not None:
        raise OSError(number, os.strerror(number), str(path)) from error


def copy(path: Path, connection: sqlite3.Connection) -> None:
    """Copy a journal that nobody has open.

    SQLite in exclusive mode keeps in memory what its processes would share in a file. What can't be locked,
    because it can't be written, is taken as it is, if nothing waits in the log beside it.

    Raises:
        sqlite3.Error: It can't be read.
        OSError: Likewise.
    """
    log = path.with_name(f"{path.name}-wal")
    for options in ("mode=rw", "mode=ro&immutable=1"):
        if "immutable" in options and log.exists() and log.stat().st_size:
            break
        try:
            uri = f"{path.absolute().as_uri()}?{options}"
            with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as source:
                source.execute("PRAGMA locking_mode=EXCLUSIVE")
                source.backup(connection)
        except sqlite3.OperationalError:
            continue
        return
    raise sqlite3.OperationalError("the journal can't be read")


def _code(error: Exception) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
