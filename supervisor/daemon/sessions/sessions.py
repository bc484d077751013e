"""The sessions of a supervisor. Each has one life, whoever began it and whoever watches it."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
import anyio.abc

from claude_vm.supervisor.daemon.sessions.ended import EndedSessions
from claude_vm.supervisor.daemon.sessions.session import Session

Around = Callable[[Session, Mapping[str, Session]], AbstractAsyncContextManager[None]]
"""What is done before a session asks for a VM, as long as it lasts, and after its end; see `surroundings`.
It is told all sessions that run."""


@asynccontextmanager
async def nothing_around(session: Session, running: Mapping[str, Session]) -> AsyncIterator[None]:
    """Do nothing, for a supervisor that leaves that to the next one."""
    del session, running
    yield


class Sessions:
    """All sessions of one supervisor, whose tasks they are.

    `running` are those of which something is yet to be done, by id; `ended` the last others, oldest first.
    """

    def __init__(self, tasks: anyio.abc.TaskGroup, around: Around) -> None:
        self.running: dict[str, Session] = {}
        self.ended = EndedSessions()
        self._tasks = tasks
        self._around = around

    async def begin(self, session: Session, request: Callable[[], None]) -> None:
        """Let a session live; return when the core was asked for its VM, by `request`.

        Raises:
            CommandError: What must be done before can't be, and nothing of the session is left.
        """
        await self._tasks.start(self._live, session, request)

    async def _live(
        self, session: Session, request: Callable[[], None], *, task_status: anyio.abc.TaskStatus[None]
    ) -> None:
        async with self._around(session, self.running):
            self.running[session.session_id] = session
            request()
            task_status.started()
            await session.ended.wait()
        del self.running[session.session_id]
        self.ended.add(session.kept())
        session.over.set()
