"""Which supervisor this is: its id, its folder, and the lock that shows it is alive.

Each supervisor has a folder ``<home>/supervisors/<id>`` with its journal and a lock file, locked as long as
it lives. The daemon's id is ``daemon``; a supervisor inside a client (``--no-daemon``) has one of its own.
Who can take another's lock knows that the other is dead, and holds the lock while it sweeps what is left.
What a dead daemon left is never swept by others: its VMs may be in use, and the next daemon takes them over.
"""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from claude_vm.drivers import locks

DAEMON_ID = "daemon"


class AlreadyRunningError(Exception):
    """Another live process has this supervisor's lock."""


def in_process_id() -> str:
    """Return a fresh id for a supervisor that lives inside a client."""
    return f"p{os.getpid()}-{secrets.token_hex(3)}"


def supervisors_folder(home: Path) -> Path:
    """Return the folder that has one folder for each supervisor."""
    return home / "supervisors"


@contextlib.contextmanager
def locked(home: Path, supervisor_id: str) -> Iterator[Path]:
    """Hold a supervisor's lock; yields its folder. Never waits.

    Raises:
        AlreadyRunningError: It is alive.
    """
    folder = supervisors_folder(home) / supervisor_id
    while True:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # a sweeper removed the folder in between
            descriptor = locks.take(folder / "lock")
            break
    if descriptor is None:
        raise AlreadyRunningError(f"supervisor '{supervisor_id}' is running")
    try:
        yield folder
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked_as_it_is(home: Path, supervisor_id: str) -> Iterator[Path | None]:
    """Hold a supervisor's lock without writing anything; yields its folder, or None where it left no lock.

    Raises:
        AlreadyRunningError: It is alive.
        OSError: The lock can't be opened.
    """
    folder = supervisors_folder(home) / supervisor_id
    try:
        descriptor = os.open(folder / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        if not locks.try_lock(descriptor):
            raise AlreadyRunningError(f"supervisor '{supervisor_id}' is running")
        yield folder
    finally:
        os.close(descriptor)


def dead_supervisors(home: Path, own_id: str) -> list[str]:
    """Return the ids of the others inside clients that left a folder. Some may be alive: `locked` tells.

    The daemon is never among them, not even a dead one.
    """
    kept = {own_id, DAEMON_ID}
    with contextlib.suppress(FileNotFoundError):
        return sorted(p.name for p in supervisors_folder(home).iterdir() if p.name not in kept and p.is_dir())
    return []


def remove(home: Path, supervisor_id: str) -> None:
    """Remove a swept supervisor's folder. The caller holds its lock."""
    shutil.rmtree(supervisors_folder(home) / supervisor_id, ignore_errors=True)
