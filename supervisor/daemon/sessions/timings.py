"""When a session came to what: marks on one clock, kept also for a while after its end.

The clock is the host's monotonic one, which all its processes share: a client may lay its own instants beside
these.
"""

import time
from typing import Final

KEPT_SESSIONS: Final = 1000
"""Ended sessions whose marks are kept."""


class Marks:
    """The marks of one session: the first instant of each name, in the order in which they came.

    Names, as far as they occur: requested, queued, claimed, clone, the driver's own (`Capabilities.phases`),
    connect, prime, files, start, first-output, ended, deleted. Each says that this begins, or has happened.
    """

    def __init__(self) -> None:
        self._at: dict[str, float] = {}

    def add(self, name: str) -> None:
        """Note that `name` is now; a second time changes nothing."""
        if name not in self._at:
            self._at[name] = time.monotonic()

    def listed(self) -> list[tuple[str, float]]:
        """Return the marks: name, and instant in seconds of `time.monotonic`."""
        return list(self._at.items())
