"""`claude-vm ps`: the sessions that this supervisor runs, and with `--all` the last that ended."""

import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import msgspec

from claude_vm.supervisor.core.views import SessionView
from claude_vm.supervisor.daemon.clients.batches import in_batches
from claude_vm.supervisor.daemon.clients.command import Command
from claude_vm.supervisor.daemon.clients.table import ago, table
from claude_vm.supervisor.daemon.commands.story import story
from claude_vm.supervisor.daemon.ports.published import PublishedPort
from claude_vm.supervisor.daemon.sessions.session import EndedSession, Session
from claude_vm.supervisor.grammar.commands.sessions import Ps


class Mark(msgspec.Struct, frozen=True):
    """An instant in a session, in seconds of the host's monotonic clock, which all its processes share."""

    name: str
    at: float


class SessionRow(msgspec.Struct, frozen=True, kw_only=True):
    """One session, as ``ps --json`` prints it.

    `state` is ``queued``, ``preparing``, ``running``, ``ending`` or ``ended``; `phase` is the step within it.
    `created_at` is a Unix time in seconds. `source` says how its VM came: ``warm`` (it was ready), ``paused``
    (it was started ahead), ``making`` (it was already being made ready), ``made`` (for this session),
    ``resumed`` (after a supervisor's restart), "" while it has none. `status` is the exit status as soon as
    it is settled, else null. `attached` is false for a session that goes on without a client. `marks` says
    when it came to what: requested, queued, claimed, clone, the phases of the driver's start, connect,
    prime, files, start, first-output, ended, deleted, as far as they occurred.
    `ports` are the published ones, while it lasts; `reports` what was found out about it after its end, in
    words.
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
    source: str
    status: int | None
    attached: bool
    marks: list[Mark]
    ports: list[PublishedPort]
    reports: list[str]


async def ps(command: Command, request: Ps) -> int:
    """List sessions, oldest first; or tell the story of one."""
    if request.story:
        return await story(command, request.story, json=request.json)
    sessions = command.supervisor.sessions
    views = {view.session_id: view for view in command.supervisor.dispatcher.core.sessions()}
    reports = {r.session: r.lines for r in command.supervisor.scanner.reports.all()} if request.all else {}
    running = list(sessions.running.values())
    rows: dict[str, SessionRow] = {}
    if request.all:
        rows |= {s.session_id: _row(s, None, reports) async for s in in_batches(sessions.ended)}
    rows |= {s.session_id: _row(s, views.get(s.session_id)) async for s in in_batches(running)}
    found = sorted(rows.values(), key=lambda row: row.created_at)
    if request.json:
        await command.out_json(found)
        return 0
    now = time.time()
    lines = [
        (r.session, _state(r), r.source or "-", ago(now - r.created_at), _ports(r), r.project, r.command)
        async for r in in_batches(found)
    ]
    head = ("SESSION", "STATE", "VM", "AGE", "PORTS", "PROJECT", "COMMAND")
    if not any(r.ports for r in found):  # most have none
        shown = table((*head[:4], *head[5:]), [(*line[:4], *line[5:]) for line in lines])
    else:
        shown = table(head, lines)
    await command.out(*shown, *(line for row in found for line in row.reports))
    return 0


def _row(
    session: Session | EndedSession,
    view: SessionView | None,
    reports: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> SessionRow:
    """Return a session's row. The core has no view of one that has ended, or is not requested yet."""
    plan = session.plan
    outcome = session.outcome
    is_new = isinstance(session, Session) and outcome is None
    settled = outcome.status if outcome is not None else view.status if view is not None else None
    return SessionRow(
        session=session.session_id,
        state=str(view.state) if view is not None else "queued" if is_new else "ended",
        phase=session.phase,
        project=plan.project,
        command=plan.command_text,
        created_at=session.created_at,
        driver=plan.key.driver,
        cpus=plan.key.cpus,
        memory_mib=plan.key.memory_mib,
        pty=plan.pty is not None,
        source=session.source,
        status=settled,
        attached=isinstance(session, Session) and bool(session.clients),
        marks=[Mark(name, at) for name, at in session.marks],
        ports=session.ports.listed if isinstance(session, Session) else [],
        reports=list(reports.get(session.session_id, ())),
    )


def _ports(row: SessionRow) -> str:
    """Return the ports for people: where each leads, and by a mark which are not open."""
    shown = [
        (str(p.host) if p.host == p.guest else f"{p.host}:{p.guest}") + ("!" if p.problem else "")
        for p in row.ports
    ]
    return ",".join(shown) or "-"


def _state(row: SessionRow) -> str:
    """Return the state for people: of an ended one with its exit status."""
    if row.state == "ended" and row.status is not None:
        return f"ended ({row.status})"
    return row.state if row.attached or row.state == "ended" else f"{row.state}, no client"
