"""`claude-vm ps`: the sessions that this supervisor runs."""

import time

import msgspec

from claude_vm.supervisor.daemon.commands.command import Command
from claude_vm.supervisor.daemon.commands.table import ago, table
from claude_vm.supervisor.grammar.requests import Ps


class SessionRow(msgspec.Struct, frozen=True):
    """One session, as ``ps --json`` prints it.

    `state` is ``queued``, ``preparing``, ``running``, ``ending`` or ``ended``; `phase` is the step within it.
    `created_at` is a Unix time in seconds.
    """

    session: str
    state: str
    phase: str
    project: str
    command: str
    created_at: float
    driver: str
    cpus: int
    memory_mib: int
    pty: bool


async def ps(command: Command, request: Ps) -> int:
    """List sessions, oldest first."""
    states = {s.session_id: str(s.state) for s in command.host.dispatcher.core.sessions()}
    rows = [
        SessionRow(
            session=s.session_id,
            state=states.get(s.session_id, "ended"),
            phase=s.phase,
            project=s.plan.project,
            command=s.plan.label,
            created_at=s.created_at,
            driver=s.plan.key.driver,
            cpus=s.plan.key.cpus,
            memory_mib=s.plan.key.memory_mib,
            pty=s.plan.pty is not None,
        )
        for s in sorted(command.host.dispatcher.sessions.values(), key=lambda s: s.created_at)
    ]
    if request.json:
        await command.out_json(rows)
        return 0
    now = time.time()
    lines = [(r.session, r.state, ago(now - r.created_at), r.project, r.command) for r in rows]
    await command.out(table(("SESSION", "STATE", "AGE", "PROJECT", "COMMAND"), lines))
    return 0
