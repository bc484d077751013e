"""The supervisor's clock: ticks when the core asked for them, and a watch on the host's own clock."""

import heapq
import time
from collections.abc import Callable

import anyio

from claude_vm.supervisor.conditions import AutoResetEvent

JUMP_S = 0.5
"""A change of the wall clock against the monotonic one, in seconds, that guests must be told of."""

WATCH_INTERVAL_S = 5.0

DRIFT_INTERVAL_S = 300.0
"""How often guests are told the time, in seconds: a clock that is wrong by 0.01 % is 0.03 s off by then."""


class Alarm:
    """Calls back at the earliest of the instants it was given (seconds of the event loop's clock)."""

    def __init__(self, ring: Callable[[float], None]) -> None:
        self._ring = ring
        self._deadlines: list[float] = []
        self._changed = AutoResetEvent()

    def wake_at(self, deadline: float) -> None:
        """Add an instant. Never waits."""
        heapq.heappush(self._deadlines, deadline)
        self._changed.set()

    async def run(self) -> None:
        """Ring until cancelled."""
        while True:
            if not self._deadlines:
                await self._changed.wait()
                continue
            earliest = self._deadlines[0]
            with anyio.CancelScope(deadline=earliest):
                await self._changed.wait()
            now = anyio.current_time()
            if self._deadlines[0] <= now:
                while self._deadlines and self._deadlines[0] <= now:
                    heapq.heappop(self._deadlines)
                self._ring(now)


async def watch_host_clock(
    jumped: Callable[[float], None],
    *,
    wall: Callable[[], float] = time.time,
    steady: Callable[[], float] = time.monotonic,
) -> None:
    """Call `jumped` with the seconds by which the host's wall clock ran off its monotonic clock.

    That happens when the host was suspended (the monotonic clock stands still then, as do the guests' own
    clocks) and when somebody sets the clock. Runs until cancelled.
    """
    offset = wall() - steady()
    while True:
        await anyio.sleep(WATCH_INTERVAL_S)
        now = wall() - steady()
        if abs(now - offset) >= JUMP_S:
            jumped(now - offset)
        offset = now


async def follow_drift(set_clocks: Callable[[], None]) -> None:
    """Call `set_clocks` again and again: the clock of a VM that waits for long runs off its host's."""
    while True:
        await anyio.sleep(DRIFT_INTERVAL_S)
        set_clocks()
