"""What is done around a session, whoever began it: before it asks for a VM, while it lasts, after its end.

What is to be done after its end is written down before, so that the next supervisor does it if this one dies.
"""

import sqlite3
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import structlog

from claude_vm.context.ports import FLAG, HIGHEST, Publish
from claude_vm.context.worktree_locks import lock_siblings, release_stale
from claude_vm.drivers.tasks import open_tasks
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.daemon.errors import CommandError
from claude_vm.supervisor.daemon.sessions.scanning import Scanner
from claude_vm.supervisor.daemon.sessions.session import Session
from claude_vm.supervisor.daemon.state.journal import Journal
from claude_vm.supervisor.daemon.state.records import JournaledSession, LeftInstance

log = structlog.get_logger()

AFTER_S = 30.0
"""How long what follows a session may hold up its end, in seconds."""


class Surroundings:
    """The surroundings of the sessions in one journal, which is `supervisor_id`'s."""

    def __init__(self, journal: Journal, supervisor_id: str, scanner: Scanner) -> None:
        self._journal = journal
        self._supervisor_id = supervisor_id
        self._scanner = scanner

    @asynccontextmanager
    async def around(self, session: Session, running: Mapping[str, Session]) -> AsyncIterator[None]:
        """Surround a session; `running` are all. What follows it is done when it has `ended`.

        Raises:
            CommandError: A port can't be had, or the journal can't be written: there must be no session.
        """
        goes_on = False
        try:
            await self._before(session, running)
            hint = any(client.hints for client in session.clients)
            async with open_tasks() as tasks:
                tasks.start_soon(partial(session.ports.serve, session.say, hint=hint))
                try:
                    yield
                except anyio.get_cancelled_exc_class():  # the supervisor is ending
                    goes_on = not session.ended.is_set()
                    raise
                tasks.cancel_scope.cancel()
        finally:
            session.ports.close()
            if not goes_on:
                row = session.journaled if session.has_begun else None
                with anyio.move_on_after(AFTER_S, shield=True):
                    await self._after(session.session_id, row, session.plan.key)

    async def settle(self, left: Iterable[LeftInstance], going_on: Collection[str] = ()) -> None:
        """Do what follows the sessions of a dead supervisor, but for those that go on.

        `left` are the instances of those that had begun.
        """
        begun = {one.session.session_id: (one.session, one.key) for one in left if one.session is not None}
        locked = {name for _, name in self._journal.locked_repositories()}
        for session_id in (locked | begun.keys()).difference(going_on):
            await self._after(session_id, *begun.get(session_id, (None, None)))

    async def _before(self, session: Session, running: Mapping[str, Session]) -> None:
        problems = session.ports.reserve()
        if session.found:
            for port, problem in problems:
                log.warning(
                    "port-not-published-again", session=session.session_id, port=port, problem=problem
                )
            return
        if problems:
            others = [other for other in running.values() if other is not session]
            raise _ports_taken(session.plan.publish, problems, others)
        await self._lock_worktrees(session)

    async def _after(self, session_id: str, begun: JournaledSession | None, key: PoolKey | None) -> None:
        """Do what follows a session; `begun` and `key` are what is known of it if its command had started."""
        if begun is not None and key is not None:
            with _carrying_on(session_id):
                self._scanner.request(session_id, begun.project, begun.created_at, key.mounts)
        with _carrying_on(session_id):
            await self._unlock_worktrees(session_id)

    async def _lock_worktrees(self, session: Session) -> None:
        repository = session.plan.repository
        if not repository:
            return
        try:
            self._journal.lock_worktrees(repository, session.session_id)
        except sqlite3.Error as error:
            raise CommandError("journal-failed", f"the journal can't be written: {error}") from error
        mounted = [Path(mount.host) for mount in session.plan.key.mounts]
        await anyio.to_thread.run_sync(lock_siblings, Path(repository), mounted, self._supervisor_id)

    async def _unlock_worktrees(self, session_id: str) -> None:
        """Unlock what a session has locked, unless others need it. The row goes last, in case we die."""
        try:
            locks = self._journal.locked_repositories()
            for repository in [each for each, name in locks if name == session_id]:
                if [each for each, _ in locks].count(repository) == 1:
                    await anyio.to_thread.run_sync(release_stale, Path(repository), self._supervisor_id)
                self._journal.unlock_worktrees(repository, session_id)
        except (sqlite3.Error, OSError) as error:
            log.warning("worktrees-not-unlocked", session=session_id, error=str(error))


@contextmanager
def _carrying_on(session_id: str) -> Iterator[None]:
    """Surround one step: a bug in it must end neither the steps that follow nor other sessions."""
    try:
        yield
    except Exception:
        log.exception("clean-up-failed", session=session_id)


def _ports_taken(
    publish: Publish, problems: list[tuple[int, str]], others: Iterable[Session]
) -> CommandError:
    """Return what says which ports of this host are not available, and who has them."""
    lines: list[str] = []
    for port, problem in problems:
        owner = next((other.session_id for other in others if other.ports.has(port)), "")
        why = f"the session {owner} has it" if owner else problem
        lines.append(f"port {port} of this host is not available: {why}")
    asked = next(p for p in publish.ports if p.host == problems[0][0])
    other = asked.host + 1 if asked.host < HIGHEST else asked.host - 1
    way = f"choose another port ({FLAG} {other}:{asked.guest}), or publish none ({FLAG} none)"
    hint = f"{asked.source} asks for it; {way}"
    if len(lines) == 1:
        return CommandError("port-taken", lines[0], hint=hint)
    return CommandError("port-taken", f"{len(lines)} ports are not available", lines=lines, hint=hint)
