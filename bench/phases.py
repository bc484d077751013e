"""From instants to phases: where the time of a session went.

The daemon's marks tell when something began (``clone``, ``connect`` …) or happened (``requested``,
``claimed`` …). Either way the time until the next instant is that mark's; the client's own instants, its
start, the first output and its end, stand among them.
"""

import csv
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import TextIO

from claude_vm.bench.records import EXITED, SHOWN, Sample
from claude_vm.drivers.lima.phases import LimaPhase
from claude_vm.drivers.vm.phases import VmPhase

PHASE_OF: Mapping[str, str] = {
    "spawned": "cli",
    "requested": "claim",
    "queued": "queue",
    "claimed": "claim",
    "start": "first output",
    "first-output": "relay",
    SHOWN: "session",
    "ended": "destroy",
    "deleted": "goodbye",
}
"""The phase that begins with each instant. Others are phases by their own name."""

ORDER = (
    *("cli", "claim", "queue", "clone"),
    *(phase.mark for phase in (VmPhase.RESTORE, VmPhase.BOOT, LimaPhase.LIMACTL, LimaPhase.QEMU)),
    *(phase.mark for phase in (VmPhase.IDENTITY, VmPhase.MOUNTS)),
    *("connect", "prime", "files", "first output", "relay", "session", "destroy", "goodbye"),
)
"""Phases in the order in which a session passes them."""


def phases_ms(sample: Sample, *, until: str = "") -> dict[str, float]:
    """Return the milliseconds of each phase of a sample, in order; they add up to the whole.

    With `until` only up to that instant. A sample that failed may lack its end.
    """
    instants = sorted({_first(sample): 0.0, **sample.instants}.items(), key=lambda pair: pair[1])
    found: dict[str, float] = {}
    for (name, begun), (following, ended) in pairwise(instants):
        phase = PHASE_OF.get(name, name)
        found[phase] = found.get(phase, 0.0) + (ended - begun) * 1000
        if following == until:
            break
    return found


def _first(sample: Sample) -> str:
    """Return what begins with a process: without marks nothing is known but the whole."""
    if "requested" in sample.instants:
        return "spawned"
    return "restore" if "login" in sample.instants else "whole"


def ordered(names: Iterable[str]) -> list[str]:
    """Return phases in the order in which a session passes them; unknown ones come last, by name."""
    return sorted(set(names), key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def write_csv(samples: Iterable[Sample], file: TextIO) -> None:
    """Write one row for each phase of each sample. Milliseconds, three digits."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ("mode", "pattern", "kind", "round", "unit", "ok", "source", "phase", "milliseconds"),
    )
    for sample in samples:
        facts = (sample.mode, sample.pattern, sample.kind, sample.round, sample.unit, int(sample.ok))
        totals = {
            f"total-{name}": at * 1000 for name, at in sample.instants.items() if name in {SHOWN, EXITED}
        }
        for phase, taken in (*phases_ms(sample).items(), *totals.items()):
            writer.writerow((*facts, sample.source, phase, f"{taken:.3f}"))
