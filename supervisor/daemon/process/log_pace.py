"""How fast the log may grow: what guests and clients cause again and again must not wash out the rest."""

import logging
import time
from collections.abc import Callable

BURST = 100
"""So many lines of a kind are logged as they come."""

EVERY_S = 10.0
"""From then on one in so many seconds."""

KINDS = 1000
"""So many kinds are known at a time: that which was not logged for longest is forgotten."""


class Pace(logging.Filter):
    """Passes lines, for each kind only so many; the next that passes says how many were left out.

    A kind is an event of one session or instance; where a line has neither, of all. What else a line says
    does not count: that is what a guest can vary. `clock` tells seconds and never goes back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._kinds: dict[tuple[str, str], tuple[float, float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a line is logged."""
        fields = record.msg if isinstance(record.msg, dict) else {}
        who = fields.get("session") or fields.get("instance") or ""
        kind = (str(fields.get("event", f"{record.name} {record.msg}")), str(who))
        now = self._clock()
        room, since, left_out = self._kinds.pop(kind, (float(BURST), now, 0))
        room = min(BURST, room + (now - since) / EVERY_S)
        if passes := room >= 1:
            room -= 1
        self._kinds[kind] = (room, now, 0 if passes else left_out + 1)
        if len(self._kinds) > KINDS:
            del self._kinds[next(iter(self._kinds))]
        if passes and left_out:
            if fields:
                fields["left_out"] = left_out
            else:
                record.msg = f"{record.getMessage()} ({left_out} like it were left out)"
                record.args = ()
        return passes
