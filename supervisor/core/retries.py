"""When to try again to delete what could not be deleted. Pure: it is told the time."""

from heapq import heappop, heappush

MAX_DELAY_S = 60.0
"""Longest pause between two tries, in seconds. The first is 1 s, each further one twice as long."""

LEAK_AFTER = 5
"""People are told after so many failed tries (after 15 s of pauses)."""


def delay_s(failures: int) -> float:
    """Return the pause in seconds after so many failed tries (1 or more)."""
    return MAX_DELAY_S if failures > 6 else float(2 ** (failures - 1))


class Retries:
    """Instants at which instances are due, and the one alarm that they need.

    An alarm, once asked for, can't be taken back. `wake` asks for one only when none that comes early enough
    is pending; a tick that comes too early, or finds nothing due, does no harm.
    """

    def __init__(self) -> None:
        self._due: list[tuple[float, str]] = []
        self._pending: float | None = None

    def add(self, at: float, instance_id: str) -> None:
        """Remember that an instance is due at an instant."""
        heappush(self._due, (at, instance_id))

    def take_due(self, now: float) -> list[tuple[float, str]]:
        """Return what is due now, each with its instant, and forget it. Call it at each tick."""
        self._pending = None
        taken = []
        while self._due and self._due[0][0] <= now:
            taken.append(heappop(self._due))
        return taken

    def wake(self) -> float | None:
        """Return the instant of the alarm to ask for, or None if none is needed."""
        if not self._due or (self._pending is not None and self._pending <= self._due[0][0]):
            return None
        self._pending = self._due[0][0]
        return self._pending
