"""`claude-vm daemon status|stop`, answered by the daemon itself."""

import os
import time

import anyio
import msgspec

from claude_vm.supervisor.core.events import ShutdownRequested
from claude_vm.supervisor.daemon.clients.command import Command
from claude_vm.supervisor.daemon.clients.table import ago
from claude_vm.supervisor.daemon.errors import CommandError
from claude_vm.supervisor.grammar.requests import Daemon


class DaemonStatus(msgspec.Struct, frozen=True):
    """What ``daemon status --json`` prints. `started_at`: Unix time in seconds.

    `instances` are all VMs, `warm` those of them that are ready for a session.
    """

    pid: int
    version: str
    home: str
    started_at: float
    sessions: int
    instances: int
    warm: int


async def daemon(command: Command, request: Daemon) -> int:
    """Tell the daemon's state, or end it."""
    supervisor = command.supervisor
    running = len(supervisor.dispatcher.sessions)
    match request.action:
        case "status":
            status = DaemonStatus(
                pid=os.getpid(),
                version=supervisor.version,
                home=str(supervisor.home),
                started_at=supervisor.started_at,
                sessions=running,
                instances=supervisor.dispatcher.instance_count,
                warm=supervisor.dispatcher.warm_count,
            )
            if request.json:
                await command.out_json(status)
            else:
                await command.out(
                    f"running: pid {status.pid}, version {status.version}, for"
                    f" {ago(time.time() - status.started_at)}, {running} session(s),"
                    f" {status.instances} VM(s), {status.warm} of them ready, home {status.home}"
                )
        case "stop":
            if running and not request.force:
                raise CommandError(
                    "sessions-running",
                    f"{running} session(s) run",
                    hint="end them with: claude-vm stop --all, or pass --force",
                )
            supervisor.dispatcher.post(ShutdownRequested(at=anyio.current_time()))
            await supervisor.dispatcher.stopped.wait()
        case _:
            raise CommandError("already-running", f"a daemon runs already, with pid {os.getpid()}")
    return 0
