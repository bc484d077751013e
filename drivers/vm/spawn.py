"""Starting QEMU so that it outlives us: its own session, no pipes, no inherited descriptors, `cwd` ``/``."""

import errno
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import anyio.to_thread

from claude_vm.drivers.errors import BootError, DriverError, ToolMissingError, words_of
from claude_vm.drivers.files import last_bytes
from claude_vm.drivers.process import BARE, ProcessIdentity
from claude_vm.drivers.vm import confine

_END_S: Final = 10.0
_TAIL: Final = 4000


def listen(path: Path) -> socket.socket:
    """Return a listening unix socket that a child may inherit, for nobody but us to connect to.

    It accepts connections at once, before the child has started: nobody needs to wait for a file to appear.

    Raises:
        DriverError: The path is taken or too long.
    """
    server = socket.socket(socket.AF_UNIX)
    try:
        path.unlink(missing_ok=True)
        server.bind(str(path))
        path.chmod(0o600)
        server.listen(4)
    except OSError as error:
        server.close()
        raise DriverError(f"can't listen on {path}: {words_of(error)}") from error
    return server


def spawn(
    argv: list[str],
    log: Path,
    given: Sequence[tuple[int, int]],
    *,
    environment: Mapping[str, str] | None = None,
) -> ProcessIdentity:
    """Start a program detached, its output in `log`; each descriptor of ours gets the number beside it there.

    Without an `environment` it gets a bare one.

    Raises:
        ToolMissingError: The program is not there.
        BootError: It ended at once.
    """
    actions: list[Any] = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    # Beyond all numbers first, so that none is overwritten before it has been moved.
    beyond = 1 + max((max(pair) for pair in given), default=0)
    moved = [(beyond + index, ours, theirs) for index, (ours, theirs) in enumerate(given)]
    actions += [(os.POSIX_SPAWN_DUP2, ours, between) for between, ours, _ in moved]
    actions += [(os.POSIX_SPAWN_DUP2, between, theirs) for between, _, theirs in moved]
    actions += [(os.POSIX_SPAWN_CLOSE, between) for between, _, _ in moved]
    try:
        pid = os.posix_spawn(
            argv[0], argv, BARE if environment is None else environment, file_actions=actions, setsid=True
        )
    except OSError as error:
        raise ToolMissingError(f"{argv[0]} can't be started: {error.strerror}") from error
    identity = ProcessIdentity.of(pid)
    if identity is None:
        reap(pid)
        raise BootError(f"{argv[0]} ended at once", detail=tail(log))
    return identity


def confined(argv: Sequence[str], *, root_guest: bool) -> list[str]:
    """Return the command that starts QEMU with no more privileges than its guest's mounts may use.

    Only a QEMU that stays root has some to lose: otherwise it changes its user by itself.
    """
    drop = "drop" if root_guest and os.geteuid() == 0 else "keep"
    return [sys.executable, "-I", "-S", confine.__file__, drop, *argv]


def reap(pid: int) -> int | None:
    """Collect an ended child and return its wait status; None when it is not our child, or still runs."""
    with suppress(ChildProcessError):
        ended, status = os.waitpid(pid, os.WNOHANG)
        return status if ended else None
    return None


async def end(process: ProcessIdentity) -> None:
    """Kill a process and wait for its end.

    Raises:
        DriverError: It does not die, or is not ours to kill.
    """
    try:
        process.kill()
    except PermissionError as error:
        raise DriverError(f"process {process.pid} can't be killed: {error.strerror}") from error
    with anyio.move_on_after(_END_S) as late:
        await process.wait()
    if late.cancelled_caught:
        raise DriverError(f"process {process.pid} does not die")
    reap(process.pid)


def printable(line: str) -> str:
    """Return a line with a mark in place of each control character."""
    return "".join(char if char.isprintable() else "?" for char in line)


def tail(path: Path) -> str:
    """Return the end of a log as printable text; a log that isn't there is empty."""
    try:
        data = last_bytes(path, _TAIL)
    except OSError as error:
        return "" if error.errno == errno.ENOENT else str(error)
    lines = data.decode(errors="replace").replace("\r", "").splitlines()[-20:]
    return "\n".join(map(printable, lines))
