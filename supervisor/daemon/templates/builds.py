"""Builds of templates that are under way, so that whoever needs one can wait for it.

::

    <home>/building/<driver>.<template>.<hex>      who builds, since when, and how far it is

Its builder holds a lock on the file for as long as it builds, from the first download on, and removes it at
the end. The kernel releases the lock of a builder that dies: what nobody holds, is nothing. Templates are
built by supervisors in any process, so neither the daemon nor its core could know of all builds.
"""

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from claude_vm.drivers import locks
from claude_vm.drivers.api import Phase, Progress

_LENGTH = 1024


class Build(msgspec.Struct, frozen=True):
    """A build. `pid` is the process whose command it is, `since` a Unix time in seconds."""

    pid: int
    since: float
    phase: Phase | None = None


@contextmanager
def announced(home: Path, driver: str, template: str, pid: int, progress: Progress) -> Iterator[Progress]:
    """Let everybody know of a build for the length of the block; yields the progress to be told.

    Raises:
        OSError: It can't be written.
    """
    build = Build(pid, time.time())
    descriptor, path = _make(home / "building", f"{driver}.{template}.")

    def tell(phase: Phase, detail: str) -> None:
        nonlocal build
        progress(phase, detail)
        if phase != build.phase:
            build = msgspec.structs.replace(build, phase=phase)
            with suppress(OSError):  # who waits is told less
                _write(descriptor, build)

    try:
        locks.lock(descriptor)
        _write(descriptor, build)
        yield tell
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
        with suppress(OSError):
            path.parent.rmdir()


def under_way(home: Path, driver: str, template: str) -> Build | None:
    """Return the build of a template that began first, or None if there is none."""
    found = []
    for path in (home / "building").glob(f"{driver}.{template}.*"):
        with suppress(OSError, msgspec.MsgspecError):
            if locks.is_locked(path):
                found.append(msgspec.json.decode(path.read_bytes(), type=Build))
            elif path.stat().st_size:  # it was locked before, so its builder has died
                path.unlink()
    return min(found, key=lambda build: build.since, default=None)


def _make(folder: Path, prefix: str) -> tuple[int, Path]:
    while True:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / f"{prefix}{secrets.token_hex(4)}"
        with suppress(FileNotFoundError):  # whoever has just ended has removed the folder
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), path


def _write(descriptor: int, build: Build) -> None:
    """Write it over the former one, at the same length: a reader sees one of them."""
    os.pwrite(descriptor, msgspec.json.encode(build).ljust(_LENGTH), 0)
