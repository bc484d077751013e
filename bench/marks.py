"""Joins the daemon's marks to the commands that were measured. Pure.

Both sides have instants of the same clock. A session belongs to a command if it was requested while the
command ran, gave its first output before the command showed it, and ended before it did. Where several could,
it is the one whose output came last before that: so those that were started together are told apart.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from claude_vm.bench.children import Timing
from claude_vm.bench.records import EXITED, SHOWN


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
    free = [(row, marks) for row in rows if "requested" in (marks := instants_of(row))]
    found: list[Mapping[str, Any] | None] = [None] * len(timings)
    for index in sorted(range(len(timings)), key=lambda index: _shown_at(timings[index])):
        fitting = [pair for pair in free if _fits(timings[index], pair[1])]
        if fitting:
            best = max(fitting, key=lambda pair: pair[1].get("first-output", pair[1]["requested"]))
            found[index] = best[0]
            free.remove(best)
    return found


def _shown_at(timing: Timing) -> float:
    return timing.begun_at + timing.instants.get(SHOWN, timing.instants.get(EXITED, 0.0))


def _fits(timing: Timing, marks: Mapping[str, float]) -> bool:
    exited = timing.begun_at + timing.instants.get(EXITED, 0.0)
    return (
        timing.begun_at <= marks["requested"] <= exited
        and marks.get("first-output", 0.0) <= _shown_at(timing)
        and marks.get("ended", 0.0) <= exited
    )


def relative(row: Mapping[str, Any], begun_at: float) -> dict[str, float]:
    """Return a session's marks as seconds after a command's start."""
    return {name: at - begun_at for name, at in instants_of(row).items()}
