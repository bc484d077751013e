"""Sessions that go on without a client: their supervisor died, their VM did not.

Nobody sees what they write. They are listed, they can be stopped, and what must follow a session follows it.
"""

import sqlite3
from functools import partial
from pathlib import Path

import anyio
import structlog

from claude_vm.context import worktree_locks
from claude_vm.context.ports import parse_publish
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.daemon.sessions.looking import Looker
from claude_vm.supervisor.daemon.sessions.relay import CHUNK
from claude_vm.supervisor.daemon.sessions.session import Session, SessionPlan
from claude_vm.supervisor.daemon.state.journal import Journal
from claude_vm.supervisor.daemon.state.records import JournaledSession
from claude_vm.supervisor.ssh.process import Pty
from claude_vm.supervisor.ssh.shells import HeldProcess

log = structlog.get_logger()

CLEAN_UP_S = 30.0
"""How long what follows a session may take, in seconds."""

UNKNOWN_TERMINAL = Pty(term="", rows=0, columns=0)
"""The terminal of a session of which only is known that it has one."""


def found_session(row: JournaledSession, key: PoolKey) -> Session:
    """Return a session that was found running, without a client."""
    plan = SessionPlan(
        key=key,
        project=row.project,
        label=row.label,
        launch=None,
        pty=UNKNOWN_TERMINAL if row.pty else None,
        publish=parse_publish(row.publish),
    )
    session = Session(row.session_id, plan, client=None, created_at=row.created_at)
    session.tell("resume", "resumed")
    return session


async def attend(session: Session, journal: Journal, supervisor_id: str, looker: Looker) -> None:
    """Wait for the end of a session without a client, and do what its client's command would have done."""
    for port, problem in session.ports.reserve():
        log.warning("port-not-published-again", session=session.session_id, port=port, problem=problem)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(session.ports.serve, _tell_nobody, hint=False))
            await session.ended.wait()
            tasks.cancel_scope.cancel()
    finally:
        # also when the supervisor ends at the same moment
        if session.ended.is_set():
            with anyio.move_on_after(CLEAN_UP_S, shield=True):
                try:
                    plan = session.plan
                    looker.owe(session.session_id, plan.project, session.created_at, plan.key.mounts)
                    await _clean_up(session, journal, supervisor_id)
                except Exception:  # a bug around one session must not end the others
                    log.exception("clean-up-failed", session=session.session_id)


def _tell_nobody(text: str, level: str) -> None:
    """Tell nobody: the log has it."""


async def _clean_up(session: Session, journal: Journal, supervisor_id: str) -> None:
    try:
        for repository, session_id in journal.locked_repositories():
            if session_id == session.session_id and journal.unlock_worktrees(repository, session_id):
                await anyio.to_thread.run_sync(worktree_locks.release_stale, Path(repository), supervisor_id)
    except (sqlite3.Error, OSError) as error:
        log.warning("worktrees-not-unlocked", session=session.session_id, error=str(error))


async def outcome(process: HeldProcess, *, pty: bool) -> int:
    """Wait for the end of a process that runs already; return its exit status.

    Its output is read and dropped, so that a full buffer does not make it stand still. On pipes its input
    ends: nobody is there who could write or end it, so what reads it would wait for ever.

    Raises:
        SshError: The connection is lost.
    """
    if not pty:
        process.write_eof()
    statuses: list[int] = []
    failures: list[Exception] = []

    async def drop(number: int) -> None:
        read = (process.read_stdout, process.read_stderr)[number]
        while await read(CHUNK):
            pass

    async with anyio.create_task_group() as tasks:
        for number in (0, 1):
            tasks.start_soon(drop, number)
        try:
            statuses.append(await process.wait())
        except Exception as error:  # noqa: BLE001 - raised below: out of here it would come in a group
            failures.append(error)
        tasks.cancel_scope.cancel()
    if failures:
        raise failures[0]
    return statuses[0]
