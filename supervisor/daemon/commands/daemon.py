"""`claude-vm daemon status|stop` and `version`, answered by the daemon itself."""

import os
import time

import anyio
import msgspec

from claude_vm.supervisor.core.events import ShutdownRequested
from claude_vm.supervisor.daemon.clients.command import Command
from claude_vm.supervisor.daemon.clients.table import ago
from claude_vm.supervisor.daemon.errors import CommandError
from claude_vm.supervisor.grammar.commands.installation import ShowDaemon, StopDaemon, Version
from claude_vm.supervisor.wire.version import VERSION


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


async def status(command: Command, request: ShowDaemon) -> int:
    """Tell the daemon's state."""
    supervisor = command.supervisor
    found = DaemonStatus(
        pid=os.getpid(),
        version=VERSION,
        home=str(supervisor.home),
        started_at=supervisor.started_at,
        sessions=len(supervisor.sessions.running),
        instances=supervisor.dispatcher.instance_count,
        warm=supervisor.dispatcher.warm_count,
    )
    if request.json:
        await command.out_json(found)
    else:
        await command.out(
            f"running: pid {found.pid}, version {found.version}, for"
            f" {ago(time.time() - found.started_at)}, {found.sessions} session(s),"
            f" {found.instances} VM(s), {found.warm} of them ready, home {found.home}"
        )
    return 0


async def stop(command: Command, request: StopDaemon) -> int:
    """End the daemon."""
    supervisor = command.supervisor
    running = len(supervisor.sessions.running)
    if running and not request.force:
        raise CommandError(
            "sessions-running",
            f"{running} session(s) are running",
            hint="end them with: claude-vm stop --all, or pass --force",
        )
    supervisor.dispatcher.post(ShutdownRequested(at=anyio.current_time()))
    await supervisor.dispatcher.stopped.wait()
    return 0


async def version(command: Command, request: Version) -> int:
    """Print our version."""
    if request.json:
        await command.out_json({"version": VERSION})
    else:
        await command.out(f"claude-vm {VERSION}")
    return 0
