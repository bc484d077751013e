"""Starts the programs of this package, as long as a block lasts; and what each does so that it ends then."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from claude_vm.bench.errors import BenchError


@contextlib.contextmanager
def running(module: str, *words: str) -> Iterator[None]:
    """Run a program of ours that says ``ready`` when it is, and ends when its stdin does.

    Raises:
        BenchError: It does not come up.
    """
    program = subprocess.Popen(
        [sys.executable, "-P", "-m", f"claude_vm.bench.sims.{module}", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert program.stdout is not None  # noqa: S101 - it was asked for
    try:
        if program.stdout.readline() != b"ready\n":
            program.kill()
            _, said = program.communicate()
            last = said.decode(errors="replace").strip().splitlines()[-1:]
            raise BenchError(f"{module} does not start: {last[0] if last else 'it gave no message'}")
        yield
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.communicate(timeout=10)
        program.kill()
        program.communicate()


async def until_orphaned(work: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Be such a program: say that it is ready, and work until the other end of our stdin is gone."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await anyio.to_thread.run_sync(sys.stdin.buffer.read, abandon_on_cancel=True)
        tasks.cancel_scope.cancel()


def bare_claim(path: Path) -> float:
    """Claim from the program `bare`; return the seconds until the first output.

    Raises:
        BenchError: There is none.
    """
    begun = time.monotonic()
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(str(path))
        client.sendall(b"go\n")
        said = client.recv(4096)
        ended = time.monotonic()
        if said != b"ready\n":
            raise BenchError("the bare claim gave no output")
        client.recv(1)  # its guest is gone
    return ended - begun
