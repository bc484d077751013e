"""Following a host agent's two files: events in ``ha.stdout.log``, log lines in ``ha.stderr.log``."""

import calendar
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .log import LOG

_STEP_S = 0.05
_EPSILON_S = 1.0
_TIME = re.compile(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)$")


def statuses(
    folder: Path, begin: float, timeout_s: float, ended: Callable[[], bool] = lambda: False
) -> Iterator[dict[str, Any]]:
    """Give each event's status that is younger than `begin`, and pass on what the host agent logs.

    `begin` is a wall clock's time. Ends when the time is over, or when the writer has ended and all is read.
    """
    events, lines = _Tail(folder / "ha.stdout.log"), _Tail(folder / "ha.stderr.log")
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        last = ended()
        found = events.read()
        for line in found:
            event = json.loads(line)
            if _seconds(event["time"]) >= begin:
                yield event["status"]
        said = lines.read()
        for line in said:
            _pass_on(line, begin)
        if last:
            return
        if not said and not found:
            time.sleep(_STEP_S)


def tell_errors(status: dict[str, Any]) -> None:
    """Log an event's errors."""
    if status.get("errors"):
        LOG.error("[" + " ".join(status["errors"]) + "]")


class _Tail:
    """Whole lines as they are added to a file, which may not exist yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rest = b""

    def read(self) -> list[str]:
        try:
            with self._path.open("rb") as file:
                if file.seek(0, 2) < self._offset:
                    self._offset = 0
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode(errors="replace") for line in lines if line.strip()]


def _pass_on(line: str, begin: float) -> None:
    try:
        entry = json.loads(line)
        level, message, at = entry.pop("level"), entry.pop("msg"), entry.pop("time")
    except (ValueError, KeyError, AttributeError):
        LOG.info(f"[hostagent] {line}")
        return
    if _seconds(at) + _EPSILON_S < begin:
        return
    fields = entry | ({"fields.level": level} if level in ("fatal", "panic") else {})
    LOG.write("error" if level in ("fatal", "panic") else level, f"[hostagent] {message}", fields)


def _seconds(text: str) -> float:
    found = _TIME.match(text)
    if found is None:
        return 0.0
    whole, fraction, zone = found.groups()
    seconds = calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")) + float(fraction or 0)
    if zone == "Z":
        return seconds
    sign = -1 if zone[0] == "+" else 1
    return seconds + sign * (int(zone[1:3]) * 3600 + int(zone[4:6]) * 60)
