"""What is wanted: the lines of ``bench targets`` by their keys, and the sizes that they are for."""

from collections.abc import Sequence
from typing import NamedTuple

from claude_vm.bench.lab import POOL
from claude_vm.bench.plan import BURST
from claude_vm.bench.records import Line
from claude_vm.bench.stats import paired, percentile

CLONES = 4
CROWD = 1000
FEW, MANY = 10, 1000
PROJECTS, SWITCHED, TOGETHER, READY = 10, 8, 10, 8
IDLE_S = 60.0
FILES = 200_000


class Figure(NamedTuple):
    """What a figure is, and what it shall be: at most `bound`, or at least. `percent` is of samples.

    One that is not `judged` is shown only, or is for the gate.
    """

    what: str
    text: str
    bound: float
    unit: str = "x"
    percent: int = 50
    at_least: bool = False
    judged: bool = True


_PYTHON = ("<= 3 x python -c pass", 3.0)
_GATE = "(for the gate)"

TARGETS = {
    "F1.p50": Figure("warm claim to prompt, p50", "<= 1.0 x ssh", 1.0),
    "F1.p95": Figure("warm claim to prompt, p95", "<= 1.3 x ssh", 1.3, percent=95),
    "F1.cli": Figure("exec to claim sent, p50", *_PYTHON),
    "F2.p50": Figure("supervisor's part of a warm claim (sim), p50", "<= 5 ms", 5.0, "ms"),
    "F2.p95": Figure("supervisor's part of a warm claim (sim), p95", "<= 15 ms", 15.0, "ms", percent=95),
    "F2.ratio": Figure("the same as a ratio, p50", _GATE, 3.0, judged=False),
    "F3.stock": Figure("RAM clone to prompt, p50", "<= 1/15 of a stock boot", 1 / 15),
    "F3.cold": Figure("RAM clone to prompt, p50", "(our masked boot)", 1 / 15, judged=False),
    "F3.hand": Figure("RAM clone to prompt, p50", "<= 1.3 x by hand + ssh", 1.3),
    "F4.warm": Figure("Lima, warm, p50", "<= 1/100 of by hand", 1 / 100),
    "F4.clone": Figure("Lima, RAM clone, p50", "<= 1/15 of by hand", 1 / 15),
    "F4.cold": Figure("Lima, cold linked clone, p50", "<= 0.8 of by hand", 0.8),
    "F5.warm": Figure(f"burst of {BURST}, the warm {POOL}, p50", "<= 1.3 x ssh", 1.3),
    "F5.rest": Figure("burst, the rest, p95", f"<= RAM clone x {BURST}/CPUs", 1.0, percent=95),
    "F5.success": Figure("burst, success", "100 %", 100.0, "%", at_least=True),
    "F6.memory": Figure(f"memory of each of {CLONES} clones (PSS)", "<= 1/2 of a booted twin", 0.5),
    "F7.served": Figure(f"of {CROWD} simulated sessions served", "all, at once", 100.0, "%", at_least=True),
    "F7.events": Figure(
        f"core events per second, {MANY} instances", ">= 50,000/s", 50_000.0, "/s", at_least=True
    ),
    "F7.flat": Figure(f"an event among {MANY} and among {FEW}", "<= 1.3 x", 1.3),
    "F8.rate": Figure("terminal throughput", ">= 0.9 x bare asyncssh", 0.9, at_least=True),
    "F8.echo.p50": Figure("echo of a key, added, alone, p50", "<= 2 ms", 2.0, "ms"),
    "F8.echo.p95": Figure("echo of a key, added, alone, p95", "<= 5 ms", 5.0, "ms", percent=95),
    "F8.flood.p50": Figure("echo of a key, added, beside a flood, p50", "<= 2 ms", 2.0, "ms"),
    "F8.flood.p95": Figure("echo of a key, added, beside a flood, p95", "<= 5 ms", 5.0, "ms", percent=95),
    "F10.version": Figure("claude-vm --version, p50", *_PYTHON),
    "F10.ps": Figure("claude-vm ps, p50", *_PYTHON),
    "F10.claim": Figure("a claim's client, p50", *_PYTHON),
    "F11.free": Figure("end to resources free, p95", "<= 300 ms", 300.0, "ms", percent=95),
    "F11.next": Figure("back to back, p95", "<= 1.1 x isolated", 1.1, percent=95),
    "F12.box": Figure("claude-vm to Claude Code's input, p50", "<= 1.05 x typed into a shell", 1.05),
    "F14.accept": Figure("no daemon to claim accepted, p95", "<= 500 ms", 500.0, "ms", percent=95),
    "F15.exit": Figure(
        f"warm session among {FILES:,} files, start to exit status, p50", "<= 1.1 x empty project", 1.1
    ),
    "F20.ready": Figure(
        f"of {PROJECTS} projects have a ready VM, by default",
        f">= {READY} on 24 GB",
        READY,
        "",
        at_least=True,
    ),
    "F20.warm": Figure(f"claims that are warm, switching among {SWITCHED}", "all", 100.0, "%", at_least=True),
    "F20.memory": Figure(
        f"available memory less by each of {TOGETHER} ready VMs", "(written down)", 0.0, "MiB", judged=False
    ),
    "F21.vm": Figure(f"a ready VM that nobody uses, {IDLE_S:.0f} s", "<= 1 % of a core", 1.0, "%"),
    "F21.memory": Figure("its memory (PSS)", "-", 0.0, "MiB", judged=False),
    "S1.p50": Figure("sim session made from nothing, p50", _GATE, 1.5, judged=False),
    "S1.p95": Figure("sim session made from nothing, p95", _GATE, 1.5, percent=95, judged=False),
}


def line(key: str, value: float | None = None, measured: str = "", note: str = "") -> Line:
    """Return the line of a figure; without a value it was not measured."""
    target = TARGETS[key]
    return Line(
        key=key,
        what=target.what,
        target=target.text,
        bound=target.bound,
        unit=target.unit,
        at_least=target.at_least,
        judged=target.judged,
        value=value,
        measured=measured,
        note=note,
    )


def ratio_line(key: str, ours: Sequence[float], base: Sequence[float], note: str = "") -> Line:
    """Return the line of a ratio of two percentiles of milliseconds; without values it is not measured."""
    if not ours or not base:
        return line(key, note=note)
    a, b = (percentile(side, TARGETS[key].percent) for side in (ours, base))
    return line(key, a / b, f"{a:.1f} ms : {b:.1f} ms", note)


def added_line(key: str, ours: Sequence[float], base: Sequence[float], digits: int = 1) -> Line:
    """Return the line of what one side takes more: a percentile of differences of pairs of milliseconds."""
    if not ours:
        return line(key)
    percent = TARGETS[key].percent
    added, a, b = (percentile(side, percent) for side in (paired(ours, base), ours, base))
    return line(key, added, f"{added:.{digits}f} ms ({a:.{digits}f}, {b:.{digits}f}; n={len(ours)})")
