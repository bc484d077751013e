"""Locks on files: one holder at a time, be it a process or a task. The kernel releases those of the dead."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def lock(descriptor: int) -> None:
    """Take the lock of an open file; wait for whoever has it."""
    fcntl.flock(descriptor, fcntl.LOCK_EX)


def try_lock(descriptor: int) -> bool:
    """Take the lock of an open file if it is free; return whether it was."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock on a file, which is made if need be, for the length of the block; wait for it.

    Raises:
        OSError: The file can't be made.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def take(path: Path) -> int | None:
    """Take the lock on a file, which is made if need be; return its descriptor, None if somebody has it.

    Closing that releases the lock. Its holder may remove the file before.

    Raises:
        OSError: The file can't be made.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not try_lock(descriptor):
                break
            if _is_at(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the former holder has removed the file: this would be a lock on nothing
    os.close(descriptor)
    return None


def is_locked(path: Path) -> bool:
    """Tell whether somebody holds the lock on a file.

    Raises:
        OSError: It can't be opened, or it is not there (FileNotFoundError).
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
