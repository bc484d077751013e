"""F5, F11 and F14: a burst on a pool that is too small, what an end costs, and a start without a daemon."""

import json
import os
from collections.abc import Sequence

import psutil
from msgspec.structs import replace

from claude_vm.bench.figures.targets import line, ratio_line
from claude_vm.bench.figures.waits import cli_ms, run_units
from claude_vm.bench.lab import Lab
from claude_vm.bench.modes import CommandMode, Mode, SessionMode, measure
from claude_vm.bench.plan import BURST, Turn, Unit, unit
from claude_vm.bench.records import EXITED, SHOWN, Figures, Line, Sample, counted, shown_ms, success
from claude_vm.bench.site import Site
from claude_vm.bench.stats import percentile

BURSTS = 5
"""How many bursts at most: each takes as long as the clones that it needs."""

STARTS = 10
GONE_S = 30.0


def burst(lab: Lab, rounds: int) -> Figures:
    """F5: eight claims at once on a pool of four, beside eight logins at once over one ssh connection."""
    units = [unit("warm", "burst"), unit("ssh", "burst"), Unit("clone")]
    samples, missing = run_units(lab, units, rounds=min(rounds, BURSTS))
    lines = burst_lines(samples, os.cpu_count() or 1)
    reason = "; ".join(dict.fromkeys(missing.values()))
    return samples, [replace(each, note=reason) if each.value is None else each for each in lines]


def burst_lines(samples: Sequence[Sample], cpus: int) -> list[Line]:
    """Return F5's lines. The first four are those that got a warm VM; the others had to wait for a clone."""
    ours = counted(samples, "warm", "burst")
    warm = [s.shown_ms for s in ours if s.ok and s.source == "warm"]
    rest = [s.shown_ms for s in ours if s.ok and s.source not in {"warm", ""}]
    ssh = shown_ms(samples, "ssh", "burst")
    clone = [ms * BURST / cpus for ms in shown_ms(samples, "clone", "sequential")]
    note = "" if not ours or warm else "the daemon does not tell which of them were warm"
    share = success(ours) * 100
    rate = line("F5.success", share, f"{share:.0f} % of {len(ours)}") if ours else line("F5.success")
    return [ratio_line("F5.warm", warm, ssh, note), ratio_line("F5.rest", rest, clone, note), rate]


def ends(lab: Lab, rounds: int) -> Figures:
    """F11: pairs of sessions, one that is alone and one right after its end."""
    name, mode, note = lab.warm_mode()
    lab.tell(f"F11: pairs of sessions ({name})")
    samples: list[Sample] = []
    for index in range(-1, min(rounds, 20)):
        samples += measure(Turn(index, 2 * index, Unit(f"{name} alone", kind="output")), mode)
        following = Turn(index, 2 * index + 1, Unit(f"{name} after", kind="output"))
        samples += measure(following, _Unprepared(mode))
    return samples, end_lines(samples, name, note)


class _Unprepared:
    """A mode for which nothing is got ready: it takes what is there."""

    def __init__(self, mode: Mode) -> None:
        self.run = mode.run
        self.finish = mode.finish

    def prepare(self, count: int) -> None:
        """Do nothing, because that is what is measured."""


def end_lines(samples: Sequence[Sample], name: str, note: str) -> list[Line]:
    """Return F11's lines."""
    alone, after = (shown_ms(samples, f"{name} {which}") for which in ("alone", "after"))
    sessions = [s for which in ("alone", "after") for s in counted(samples, f"{name} {which}") if s.ok]
    told = [
        s.instants["deleted"] - s.instants["ended"]
        for s in sessions
        if {"ended", "deleted"} <= s.instants.keys()
    ]
    # Without the daemon's word: the client ends when all is gone, and what it ran ended after its output.
    freed = told or [s.instants[EXITED] - s.instants[SHOWN] for s in sessions]
    free = line("F11.free", note=note)
    if freed:
        taken = percentile(freed, 95) * 1000
        what = "" if told else " (from the output to the client's end)"
        free = line("F11.free", taken, f"{taken:.0f} ms{what}", note)
    return [free, ratio_line("F11.next", after, alone, note)]


def starts(lab: Lab, rounds: int) -> Figures:
    """F14: a command when no daemon runs, until its claim is accepted."""
    site = lab.simulated("sim-start")
    lab.tell("F14: starts without a daemon")
    sessions = SessionMode(site)
    listing = CommandMode.ours(site, "ps")
    samples: list[Sample] = []
    modes: tuple[Mode, ...] = (sessions, listing)
    for index in range(-1, min(rounds, STARTS)):
        for number, mode in enumerate(modes):
            stop_daemon(site)
            turn = Turn(index, 2 * index + number, Unit(("start", "start ps")[number], kind="output"))
            samples += measure(turn, mode)
    return samples, start_lines(samples)


def start_lines(samples: Sequence[Sample]) -> list[Line]:
    """Return F14's line: from the daemon's instants, else a listing's whole time, which is longer."""
    taken, what = cli_ms(counted(samples, "start")), ""
    if not taken:
        taken, what = shown_ms(samples, "start ps"), " (a whole `ps`)"
    if not taken:
        return [line("F14.accept")]
    value = percentile(taken, 95)
    return [line("F14.accept", value, f"{value:.0f} ms{what}, p50 {percentile(taken, 50):.0f} ms")]


def stop_daemon(site: Site) -> None:
    """Stop a site's daemon, if one runs, and wait until its process is gone."""
    told = site.words("daemon", "status", "--json").stdout
    pid = json.loads(told).get("pid") if told.strip() else None
    site.words("daemon", "stop", "--force")
    if isinstance(pid, int):
        try:
            psutil.Process(pid).wait(GONE_S)
        except psutil.Error:
            return
