"""The floor of a claim: simulated guests and a unix socket, and between them nothing but what must be.

A program: ``python -m claude_vm.bench.sims.bare FOLDER PRIMED``. It listens at ``FOLDER/s``. Who connects and
says a line gets the first output of a shell: of one that waits for a token already (PRIMED of them are kept,
each in a guest of its own), or with PRIMED = 0 of one in a guest that is made at that moment. Its process has
the client of SSH and the simulated guest in it, as the daemon has; the rest of a claim is the supervisor.
"""

import contextlib
import secrets
import sys
from collections import deque
from functools import partial
from pathlib import Path

import anyio
import anyio.abc
import anyio.to_thread

from claude_vm.drivers.sim.guest import Guest
from claude_vm.drivers.sim.holding import HolderThread
from claude_vm.supervisor.ssh.link import Link, connect
from claude_vm.supervisor.ssh.process import Process

CONNECT_S = 60.0

_COMMAND = "read -r _; exec echo ready"


class _Ready:
    """A guest whose shell waits for one line."""

    def __init__(self, guest: Guest, holders: HolderThread, link: Link, process: Process) -> None:
        self._guest = guest
        self._holders = holders
        self._link = link
        self._process = process

    @classmethod
    async def make(cls, folder: Path) -> "_Ready":
        home = folder / secrets.token_hex(5)
        home.mkdir()
        holders = HolderThread()
        guest = Guest(home, None, holders)
        link = await connect(await guest.start(), timeout_s=CONNECT_S)
        return cls(guest, holders, link, await link.open_process(_COMMAND))

    async def first_output(self) -> bytes:
        await self._process.write(b"\n")
        return await self._process.read_stdout(4096)

    async def aclose(self) -> None:
        await self._process.aclose()
        await self._link.aclose()
        await self._guest.stop("the claim is over")
        self._holders.close()


async def _serve(
    ready: deque[_Ready],
    folder: Path,
    primed: int,
    client: anyio.abc.SocketStream,
) -> None:
    async with client:
        with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            await client.receive(64)
            claimed = ready.popleft() if ready else await _Ready.make(folder)
            await client.send(await claimed.first_output())
            await claimed.aclose()
            if primed:
                # Before the connection ends: the next measurement waits for that.
                ready.append(await _Ready.make(folder))


async def _until_orphaned(scope: anyio.CancelScope) -> None:
    """Who started us holds the other end of our stdin."""
    await anyio.to_thread.run_sync(sys.stdin.buffer.read, abandon_on_cancel=True)
    scope.cancel()


async def _main(folder: Path, primed: int) -> None:
    ready: deque[_Ready] = deque()
    for _ in range(primed):
        ready.append(await _Ready.make(folder))
    listener = await anyio.create_unix_listener(folder / "s", backlog=64)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_until_orphaned, tasks.cancel_scope)
        tasks.start_soon(partial(listener.serve, partial(_serve, ready, folder, primed)))
        sys.stdout.write("ready\n")
        sys.stdout.flush()
    with anyio.CancelScope(shield=True), anyio.move_on_after(5):
        for left in ready:
            await left.aclose()


if __name__ == "__main__":
    anyio.run(_main, Path(sys.argv[1]), int(sys.argv[2]))
