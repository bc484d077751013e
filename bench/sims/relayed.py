"""The supervisor's streams without the rest of it: protocol, windows, relay and SSH link, to one guest.

A program: ``python -m claude_vm.bench.sims.relayed HOME``, with ``access.json`` in HOME. It listens where the
daemon of that home would; a client of ``claude-vm shell COMMAND`` gets COMMAND on a channel of one connection
to that guest, through the same modules as in the daemon. There is no VM and no driver.
"""

import sys
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from claude_vm.bench.sims.access import read_access
from claude_vm.supervisor.daemon.relay import relay
from claude_vm.supervisor.ssh.link import Link, open_link
from claude_vm.supervisor.ssh.process import Pty
from claude_vm.supervisor.wire import paths
from claude_vm.supervisor.wire.server import Client, serve

CONNECT_S = 20.0


async def _handle(link: Link, client: Client) -> int:
    invocation = client.invocation
    terminal = invocation.terminal
    pty = None
    if terminal.stdin_tty and terminal.stdout_tty:
        pty = Pty(term=terminal.term, rows=terminal.rows, columns=terminal.columns)
    process = await link.open_process(invocation.argv[-1], pty=pty)
    try:
        await client.started(pty=pty is not None)
        return await relay(client, process, lambda: None, anyio.sleep_forever)
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(2):
            await process.aclose()


async def _until_orphaned(scope: anyio.CancelScope) -> None:
    """Who started us holds the other end of our stdin."""
    await anyio.to_thread.run_sync(sys.stdin.buffer.read, abandon_on_cancel=True)
    scope.cancel()


async def _main(home: Path) -> None:
    access = read_access(home / "access.json")
    path = Path(paths.socket_path(str(home)))
    paths.make_private(str(path.parent))
    listener = await anyio.create_unix_listener(path, mode=0o600)
    async with open_link(access, timeout_s=CONNECT_S) as link, anyio.create_task_group() as tasks:
        tasks.start_soon(_until_orphaned, tasks.cancel_scope)
        tasks.start_soon(partial(serve, listener, partial(_handle, link)))
        sys.stdout.write("ready\n")
        sys.stdout.flush()


if __name__ == "__main__":
    anyio.run(_main, Path(sys.argv[1]))
