"""Joins the daemon's marks to the commands that were measured. Pure.

Both sides have instants of the same clock. A session belongs to a command if it was requested while the
command ran, and ended before it did; where several could, first come, first served.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from claude_vm.bench.children import Timing
from claude_vm.bench.records import EXITED


def instants_of(row: Mapping[str, Any]) -> dict[str, float]:
    """Return a session's marks by name, the first of each, as instants. What is no mark is left out."""
    found: dict[str, float] = {}
    marks = row.get("marks")
    for mark in marks if isinstance(marks, list) else ():
        if isinstance(mark, Mapping) and isinstance(mark.get("at"), int | float):
            found.setdefault(str(mark.get("name")), float(mark["at"]))
    return found


def join(timings: Sequence[Timing], rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | None]:
    """Return the session of each command, None where there is none that fits."""
    marked = [(row, instants_of(row)) for row in rows]
    free = sorted(
        ((row, marks) for row, marks in marked if "requested" in marks), key=lambda p: p[1]["requested"]
    )
    order = sorted(range(len(timings)), key=lambda index: timings[index].instants.get(EXITED, 0.0))
    order.sort(key=lambda index: timings[index].begun_at)
    found: list[Mapping[str, Any] | None] = [None] * len(timings)
    for index in order:
        timing = timings[index]
        ended = timing.begun_at + timing.instants.get(EXITED, 0.0)
        for position, (row, marks) in enumerate(free):
            if timing.begun_at <= marks["requested"] <= ended and marks.get("ended", ended) <= ended:
                found[index] = row
                del free[position]
                break
    return found


def relative(row: Mapping[str, Any], begun_at: float) -> dict[str, float]:
    """Return a session's marks as seconds after a command's start."""
    return {name: at - begun_at for name, at in instants_of(row).items()}
