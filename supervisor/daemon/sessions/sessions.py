"""The sessions of a supervisor. Each has one life, whoever began it and whoever watches it."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager

import anyio.abc
import structlog

from claude_vm.supervisor.daemon.sessions.session import EndedSession, Session
from claude_vm.supervisor.daemon.state.records import from_text, to_text

log = structlog.get_logger()

KEPT_SESSIONS = 1000
"""Ended sessions that are kept."""

Around = Callable[[Session, Mapping[str, Session]], AbstractAsyncContextManager[None]]
"""What is done before a session asks for a VM, as long as it lasts, and after its end; see `surroundings`.
It is told all sessions that run, this one among them."""


class EndedSessions:
    """The last ended sessions, for listings, the oldest first; `limit` at most.

    They are packed, about a KiB each, because a daemon that works a lot has very many of them.
    """

    def __init__(self, limit: int = KEPT_SESSIONS) -> None:
        self._packed: deque[str | None] = deque(maxlen=limit)

    def add(self, session: EndedSession) -> None:
        """Keep a session; the oldest one goes when there are too many."""
        self._packed.append(to_text(session))

    def __iter__(self) -> Iterator[EndedSession]:
        for text in tuple(self._packed):  # others may add while somebody iterates
            if (session := from_text(text, EndedSession)) is not None:
                yield session


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

        It is among those that run from the call on: another one that begins meanwhile sees it.

        Raises:
            CommandError: What must be done before can't be, and nothing of the session is left.
        """
        self.running[session.session_id] = session
        try:
            await self._tasks.start(self._live, session, request)
        except BaseException:
            self._forget(session)
            raise

    def lose(self, session: Session, request: Callable[[], None]) -> None:
        """Keep a session that does not go on among those that ended; `request` has the core end it.

        Never waits.
        """
        self.running[session.session_id] = session
        request()
        self.ended.add(session.kept())
        self._forget(session)

    async def _live(
        self, session: Session, request: Callable[[], None], *, task_status: anyio.abc.TaskStatus[None]
    ) -> None:
        begun = False
        try:
            async with self._around(session, self.running):
                request()
                task_status.started()
                begun = True
                await session.ended.wait()
            self.ended.add(session.kept())
        except Exception:  # a bug around one session must not end the others
            if not begun:
                raise
            log.exception("session-failed", session=session.session_id)
        self._forget(session)

    def _forget(self, session: Session) -> None:
        del self.running[session.session_id]
        session.over.set()
