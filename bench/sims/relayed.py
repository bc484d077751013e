"""The supervisor's streams and no more of it: protocol, windows, relay, SSH links and holders.

A program: ``python -m claude_vm.bench.sims.relayed HOME``, with ``access.json`` in HOME. It listens where the
daemon of that home would; a client of ``claude-vm shell COMMAND`` gets COMMAND in a primed shell, through the
same modules as in the daemon. As there, each session has a connection and a holder of its own; only the
machine is the same for all. There is no VM and no driver.
"""

import contextlib
import secrets
import sys
import tempfile
from functools import partial
from pathlib import Path

import anyio
from msgspec.structs import replace

from claude_vm.bench.sims.access import read_access
from claude_vm.bench.sims.holder import open_holder
from claude_vm.bench.sims.programs import until_orphaned
from claude_vm.drivers.api import Access
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.daemon.sessions.attachment import Attachment
from claude_vm.supervisor.daemon.sessions.plan import SessionPlan
from claude_vm.supervisor.daemon.sessions.session import Session
from claude_vm.supervisor.ssh.launch import LaunchMode, launch_file
from claude_vm.supervisor.ssh.link import Link, connect
from claude_vm.supervisor.ssh.process import Pty
from claude_vm.supervisor.ssh.shells import ShellKind, prime
from claude_vm.supervisor.wire import paths
from claude_vm.supervisor.wire.connected_client import Client
from claude_vm.supervisor.wire.server import serve

CONNECT_S = 20.0

NO_VM = PoolKey("bench", "none", "none", cpus=1, memory_mib=1, disk_gib=1)


async def _handle(access: Access, client: Client) -> int:
    with tempfile.TemporaryDirectory(prefix="cvb-") as folder, open_holder(Path(folder)) as holder:
        link = await connect(replace(access, holder=str(holder)), timeout_s=CONNECT_S)
        async with contextlib.aclosing(link):
            return await _run(link, Path(folder), client)


async def _run(link: Link, run: Path, client: Client) -> int:
    invocation = client.invocation
    terminal = invocation.terminal
    pty = None
    if terminal.stdin_tty and terminal.stdout_tty:
        pty = Pty(term=terminal.term, rows=terminal.rows, columns=terminal.columns)
    session_id = secrets.token_hex(5)
    folder = run / "sessions" / session_id
    folder.mkdir(parents=True)
    launch = launch_file(session_id, mode=LaunchMode.EVAL, argv=invocation.argv[-1:])
    (folder / Path(launch.path).name).write_bytes(launch.data)
    shells = await prime(
        link, [ShellKind.PIPES if pty is None else ShellKind.PTY], term=terminal.term or "dumb"
    )
    process = await shells.start(session_id, pty=pty)
    try:
        plan = SessionPlan(key=NO_VM, project="", command_text="", launch=None, pty=pty)
        session = Session(session_id, plan)
        attachment = Attachment(session, client, quiet=False, verbose=False)
        session.attach(attachment)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(attachment.serve, lambda _: None)
            status = await session.carry(process)
            tasks.cancel_scope.cancel()
        return status
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(2):
            await process.aclose()


async def _main(home: Path) -> None:
    access = read_access(home / "access.json")
    path = Path(paths.socket_path(str(home)))
    paths.make_private(str(path.parent))
    listener = await anyio.create_unix_listener(path, mode=0o600)
    await until_orphaned(partial(serve, listener, partial(_handle, access)))


if __name__ == "__main__":
    anyio.run(_main, Path(sys.argv[1]))
