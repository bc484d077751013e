"""Reading small files that a stranger may have put there."""

import os
import stat
from pathlib import Path
from typing import Final

LINUX: Final = hasattr(os, "O_PATH")

LOOK: Final = (os.O_PATH if LINUX else os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY) | os.O_CLOEXEC
"""How something is opened of which is not known what it is: a device must not notice that somebody looked."""

_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def read_regular(path: Path, limit: int) -> bytes | None:
    """Return a regular file's content; None for anything else: missing, a FIFO, a device, over `limit` bytes.

    Symlinks are followed. Never waits, also not for the writer of a FIFO, and opens no device.
    """
    try:
        descriptor = os.open(path, LOOK)
    except (OSError, ValueError):
        return None
    try:
        return read_open(descriptor, limit)
    finally:
        os.close(descriptor)


def read_open(descriptor: int, limit: int) -> bytes | None:
    """Return the content of what was opened with `LOOK`; None as in `read_regular`."""
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        # The very file, whatever has its name by now.
        readable = os.open(f"/proc/self/fd/{descriptor}", _READ) if LINUX else os.dup(descriptor)
    except OSError:
        return None
    try:
        data = b""
        while len(data) <= limit and (more := os.read(readable, limit + 1 - len(data))):
            data += more
    except OSError:
        return None
    finally:
        os.close(readable)
    return data if len(data) <= limit else None
