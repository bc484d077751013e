"""The last ended sessions, for listings: packed, because a daemon that works a lot has very many of them."""

from collections import deque
from collections.abc import Iterator

from claude_vm.supervisor.daemon.sessions.session import EndedSession
from claude_vm.supervisor.daemon.state.records import from_text, to_text

KEPT_SESSIONS = 1000
"""Ended sessions that are kept."""


class EndedSessions:
    """What is kept of ended sessions, the oldest first: about a KiB each, and `limit` at most."""

    def __init__(self, limit: int = KEPT_SESSIONS) -> None:
        self._packed: deque[str | None] = deque(maxlen=limit)

    def add(self, session: EndedSession) -> None:
        """Keep a session; the oldest one goes when there are too many."""
        self._packed.append(to_text(session))

    def __iter__(self) -> Iterator[EndedSession]:
        for text in tuple(self._packed):  # others may add while somebody iterates
            if (session := from_text(text, EndedSession)) is not None:
                yield session
