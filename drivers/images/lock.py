"""One process at a time: a lock on a file, released by the kernel when its holder dies."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio

from claude_vm.drivers.locks import take

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
    while (fd := take(path)) is None:
        if waiting is not None:
            waiting()
            waiting = None
        await anyio.sleep(_RETRY_S)
    try:
        yield
    finally:
        if remove:
            path.unlink(missing_ok=True)
        os.close(fd)
