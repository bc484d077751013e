"""Files of this host: read in parts, and written so that nobody sees a half of one."""

import os
from pathlib import Path


def read_beginning(path: Path, limit: int) -> bytes:
    """Return so many bytes of a regular file; nothing where there is none that can be read."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(limit)
    except (OSError, ValueError):
        return b""


def last_bytes(path: Path, limit: int) -> bytes:
    """Return the end of a file.

    Raises:
        OSError: It can't be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - limit))
        return file.read(limit)


def replace(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a file beside a former one, then take its place. One writer at a time.

    Raises:
        OSError: It can't be written.
    """
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
    new.rename(path)


def sync(path: Path) -> None:
    """Make a file survive a crash of the host.

    Raises:
        OSError: It can't be read, or the disk fails.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
