"""The floor of a claim: simulated guests and a unix socket, and between them nothing but what must be.

A program: ``python -m claude_vm.bench.sims.bare FOLDER PRIMED``. It listens at ``FOLDER/s``. Who connects and
says a line gets the first output of a shell: of one that waits for a token already (PRIMED of them are kept,
each in a guest of its own), or with PRIMED = 0 of one in a guest that is made at that moment. Its process has
both ends of SSH in it, as a daemon with simulated guests has; the rest of a claim is the supervisor.
"""

import asyncio
import contextlib
import getpass
import sys
from collections import deque
from functools import partial
from pathlib import Path

import anyio
import anyio.abc
import asyncssh

from claude_vm.bench.sims.connection import open_connection
from claude_vm.bench.sims.programs import until_orphaned

_COMMAND = "read -r _; exec echo ready"


async def _run(channel: "asyncssh.SSHServerProcess[bytes]") -> None:
    """Be the guest's shell, which gets a line and says one."""
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec("bash", "-c", _COMMAND, stdin=pipe, stdout=pipe)
    assert child.stdin is not None  # noqa: S101 - they were asked for
    assert child.stdout is not None  # noqa: S101
    with contextlib.suppress(OSError):  # who has claimed it may be gone
        child.stdin.write(await channel.stdin.readline())
        child.stdin.close()
        channel.stdout.write(await child.stdout.readline())
    channel.exit(await child.wait())


class _Ready:
    """A guest whose shell waits for one line."""

    def __init__(
        self,
        guest: asyncssh.SSHAcceptor,
        connection: asyncssh.SSHClientConnection,
        shell: "asyncssh.SSHClientProcess[bytes]",
    ) -> None:
        self._guest = guest
        self._connection = connection
        self._shell = shell

    @classmethod
    async def make(cls) -> "_Ready":
        host, client = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
        guest = await asyncssh.listen(
            "127.0.0.1",
            0,
            config=[],
            server_host_keys=[host],
            authorized_client_keys=asyncssh.import_authorized_keys(client.export_public_key().decode()),
            process_factory=_run,
            encoding=None,
            kex_algs=["curve25519-sha256"],
            compression_algs=["none"],
            gss_host=None,
        )
        connection = await open_connection(
            "127.0.0.1",
            guest.get_port(),
            user=getpass.getuser(),
            host_key=host.convert_to_public(),
            client_key=client,
        )
        shell = await connection.create_process(encoding=None)
        return cls(guest, connection, shell)

    async def first_output(self) -> bytes:
        self._shell.stdin.write(b"\n")
        return await self._shell.stdout.read(4096)

    async def aclose(self) -> None:
        self._connection.close()
        await self._connection.wait_closed()
        self._guest.close()
        await self._guest.wait_closed()


async def _serve(ready: deque[_Ready], primed: int, client: anyio.abc.SocketStream) -> None:
    async with client:
        with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            await client.receive(64)
            claimed = ready.popleft() if ready else await _Ready.make()
            await client.send(await claimed.first_output())
            await claimed.aclose()
            if primed:
                # Before the connection ends: the next measurement waits for that.
                ready.append(await _Ready.make())


async def _main(folder: Path, primed: int) -> None:
    ready: deque[_Ready] = deque()
    for _ in range(primed):
        ready.append(await _Ready.make())
    listener = await anyio.create_unix_listener(folder / "s", backlog=64)
    await until_orphaned(partial(listener.serve, partial(_serve, ready, primed)))
    with anyio.CancelScope(shield=True), anyio.move_on_after(5):
        for left in ready:
            await left.aclose()


if __name__ == "__main__":
    anyio.run(_main, Path(sys.argv[1]), int(sys.argv[2]))
