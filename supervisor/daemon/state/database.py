"""Our databases: opened, checked and brought to their present schema, here and nowhere else.

A schema is a sequence of steps, and a file's ``user_version`` counts the steps that it has had. A new file
gets them all, a former version's gets those that it lacks, in one transaction. So a step that was released is
never changed: what is new is one more step. A file with more steps than ours was written by a newer version;
nothing in it is touched.
"""

import contextlib
import errno
import functools
import os
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

Schema = tuple[tuple[str, ...], ...]
"""Steps, and the statements of each."""

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
"""What the system would say, where a file beside the database can be written."""

_LEAST_ROOM = 256 * 1024
"""Free bytes with which a database has all that it needs."""


class NewerSchemaError(Exception):
    """A newer version wrote this file, and only that one knows what is in it."""

    code = "newer-database"

    def __init__(self, path: Path, version: int, known: int) -> None:
        super().__init__(
            f"{path} was written by a newer claude-vm: its schema is number {version}, this one knows {known}"
        )
        self.hint = "use the newer version; if you can't, move the file away: what it remembers is then lost"


def connect(
    path: Path,
    schema: Schema,
    *,
    settings: Sequence[str] = (),
    timeout_s: float,
    any_thread: bool = False,
) -> sqlite3.Connection:
    """Open a database, or create it, and bring it to the last step. The caller closes the connection.

    `settings` are statements for this connection; `timeout_s` is how long others' locks are waited for. With
    `any_thread` its user sees to it that only one thread uses it at a time.

    Raises:
        NewerSchemaError: See there.
        sqlite3.Error: The host does not let SQLite work (`is_of_host`), or the file is damaged, or not ours.
        UnicodeDecodeError: The file is damaged.
    """
    connection = sqlite3.connect(
        path, isolation_level=None, timeout=timeout_s, check_same_thread=not any_thread
    )
    try:
        _check(connection, path, schema)
        for setting in settings:
            connection.execute(setting)
        _migrate(connection, schema)
    except BaseException:
        connection.close()
        raise
    return connection


def copy(path: Path, schema: Schema) -> sqlite3.Connection:
    """Copy a database that nobody has open into memory, and bring the copy to the last step.

    A file that is not there has an empty copy. Nothing needs room, or a right to write. The caller closes the
    connection.

    Raises:
        NewerSchemaError: See there.
        sqlite3.Error: It can't be read, or is damaged, or not ours.
        OSError: It can't be read.
        UnicodeDecodeError: It is damaged.
    """
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        if path.exists():
            _read(path, connection)
            _check(connection, path, schema)
        _migrate(connection, schema)
    except BaseException:
        connection.close()
        raise
    return connection


def connect_again(path: Path, *, timeout_s: float, writable: bool = False) -> sqlite3.Connection:
    """Open a database that this or another process has open, as it is. The caller closes the connection.

    Raises:
        sqlite3.Error: It can't be opened.
    """
    uri = f"{path.absolute().as_uri()}?mode={'rw' if writable else 'ro'}"
    return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=timeout_s)


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Do all that is done within the block, or nothing of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def number(connection: sqlite3.Connection, query: str) -> int:
    """Return the one number that a query has."""
    return int(connection.execute(query).fetchone()[0])


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


def _check(connection: sqlite3.Connection, path: Path, schema: Schema) -> None:
    """See that a file is whole, and one that `schema` knows.

    Raises:
        NewerSchemaError: See there.
        sqlite3.DatabaseError: It is damaged.
    """
    connection.text_factory = _text
    if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
        raise sqlite3.DatabaseError("quick_check failed")
    version = number(connection, "PRAGMA user_version")
    if version < 0:
        raise sqlite3.DatabaseError(f"it has the schema {version}")
    if version > len(schema):
        raise NewerSchemaError(path, version, len(schema))


def _migrate(connection: sqlite3.Connection, schema: Schema) -> None:
    """Take the steps that a file lacks, all or none of them.

    Raises:
        sqlite3.DatabaseError: A step is impossible, or it does not have our tables afterwards.
    """
    if number(connection, "PRAGMA user_version") < len(schema):
        with transaction(connection):
            # Who had the lock before us may have taken them.
            for step in schema[number(connection, "PRAGMA user_version") :]:
                for statement in step:
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version={len(schema)}")
    intended = _intended_shape(schema)
    ours = {table for _, table, _ in intended}  # others may be there: an ANALYZE makes some
    if [row for row in _shape(connection) if row[1] in ours] != intended:
        raise sqlite3.DatabaseError("its tables are not ours")


def _shape(connection: sqlite3.Connection) -> list[tuple[str, str, str]]:
    """Return (kind, name, column) of all tables and views. In which order columns were added is no matter."""
    return connection.execute(
        "SELECT m.type, m.name, c.name FROM sqlite_master AS m JOIN pragma_table_info(m.name) AS c"
        " WHERE m.type IN ('table', 'view') ORDER BY m.name, c.name"
    ).fetchall()


@functools.cache
def _intended_shape(schema: Schema) -> list[tuple[str, str, str]]:
    with contextlib.closing(sqlite3.connect(":memory:")) as empty:
        for step in schema:
            for statement in step:
                empty.execute(statement)
        return _shape(empty)


def _read(path: Path, connection: sqlite3.Connection) -> None:
    """Copy a file that nobody has open.

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
    raise sqlite3.OperationalError("it can't be read")


def _text(data: bytes) -> str:
    """What is no text is no value that we wrote; it must not keep the rest from being read."""
    return data.decode(errors="replace")


def _code(error: Exception) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
