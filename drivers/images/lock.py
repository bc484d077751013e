"""One process at a time: a lock on a file, released by the kernel when its holder dies."""

import fcntl
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio

_RETRY_S: Final = 0.25


@asynccontextmanager
async def hold(
    path: Path, waiting: Callable[[], None] | None = None, *, remove: bool = False
) -> AsyncIterator[None]:
    """Hold the lock `path` for the length of the block; wait for whoever has it.

    The file is made, and stays unless `remove` is given. `waiting` is called once if somebody else has the
    lock. Two tasks of one process exclude each other as well. Asks four times a second, because a thread that
    waits in the kernel can't be cancelled.

    Raises:
        OSError: The file can't be made.
    """
    while (fd := _try(path)) is None:
        if waiting is not None:
            waiting()
            waiting = None
        await anyio.sleep(_RETRY_S)
    try:
        yield
    finally:
        if remove:
            _unlink(path)
        os.close(fd)


def _try(path: Path) -> int | None:
    """Take the lock if it is free; return its descriptor."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The former holder may have removed the file between the two calls: then this is a lock on nothing.
        if path.stat().st_ino == os.fstat(fd).st_ino:
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _unlink(path: Path) -> None:
    """Remove a lock file that we hold."""
    path.unlink(missing_ok=True)
