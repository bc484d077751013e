"""F21: what a ready VM costs while nobody uses it."""

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from claude_vm.bench.errors import UnavailableError
from claude_vm.bench.figures.targets import IDLE_S, line
from claude_vm.bench.guests import pss_mib
from claude_vm.bench.lab import Lab
from claude_vm.bench.records import Figures, Line
from claude_vm.bench.site import Site
from claude_vm.drivers.lima.home import lima_home

SETTLE_S = 60.0
"""A clone goes on for a while with what it has begun: pages that it touches, timers of its start."""


def idle(lab: Lab, rounds: int) -> Figures:  # noqa: ARG001 - it takes its time once
    """F21: processor time of a ready VM in which nothing runs, and of the daemon that keeps it.

    All processes count that are there for it: QEMU, and under Lima its host agent.
    """
    site = lab.site("idle", pool="size = 1\n")
    site.fill(1)
    lab.tell(f"F21: a ready VM that nobody uses, for {SETTLE_S + IDLE_S:.0f} s")
    time.sleep(SETTLE_S)
    before = scheduled(site)
    begun = time.monotonic()
    time.sleep(IDLE_S)
    after = scheduled(site)
    took = time.monotonic() - begun
    share = {pid: (after[pid][1] - was) / took * 100 for pid, (_, was) in before.items() if pid in after}
    vm = {pid: part for pid, part in share.items() if not after[pid][0]}
    if not vm:
        raise UnavailableError("no process of the ready VM was found")
    memory = sum(pss_mib(pid) for pid in vm)
    return [], idle_lines(sum(vm.values()), sum(share.values()) - sum(vm.values()), memory)


def idle_lines(vm: float, daemon: float, memory_mib: float) -> list[Line]:
    """Return F21's lines, from per cent of a core and MiB."""
    said = f"{vm:.2f} % of a core (the daemon: {daemon:.2f} %)"
    return [line("F21.vm", vm, said), line("F21.memory", memory_mib, f"{memory_mib:.0f} MiB")]


def scheduled(site: Site) -> Mapping[int, tuple[bool, float]]:
    """Return of each process of a home whether it is the daemon's own, and its processor time in seconds."""
    found: dict[int, tuple[bool, float]] = {}
    folders = (str(site.root), str(lima_home(site.home)))
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            words = " ".join([*process.cmdline(), process.environ().get("CLAUDE_VM_HOME", "")])
            if any(folder in words for folder in folders):
                own = "claude_vm.supervisor.daemon" in process.cmdline()
                found[process.pid] = (own, _scheduled_s(process.pid))
    return found


def _scheduled_s(pid: int) -> float:
    """Return the processor time of all threads of a process, finer than the system's ticks.

    Source: Linux, Documentation/scheduler/sched-stats.rst (``/proc/<pid>/schedstat``).
    """
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9
