"""Starts the programs of this package, as long as a block lasts."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

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
            raise BenchError(f"{module} does not come up: {last[0] if last else 'it says nothing'}")
        yield
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.communicate(timeout=10)
        program.kill()
        program.communicate()


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
