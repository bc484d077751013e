"""F20: how many ready VMs the default settings keep, whether switching among them is warm, what one takes."""

import copy
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from claude_vm.bench.figures.targets import PROJECTS, SWITCHED, TOGETHER, line
from claude_vm.bench.lab import Lab
from claude_vm.bench.records import Figures, Line
from claude_vm.bench.site import Site
from claude_vm.drivers.memory import available_mib
from claude_vm.supervisor.daemon.pool.policy import host_memory_mib

SWITCHES = 2
SETTLED_S = 120.0
LOOK_S = 0.5

HOST_MIB = 23_000
"""The target is for a host of 24 GB; a smaller one is not judged."""


def ready(lab: Lab, rounds: int) -> Figures:  # noqa: ARG001 - one round of each project is enough
    """Fill ten projects, switch among the last eight, and weigh ten VMs of one."""
    site = lab.defaults()
    projects = [lend(lab, site, site.root / f"p{number}") for number in range(PROJECTS)]
    lab.tell(f"F20: {TOGETHER} ready VMs of one project")
    projects[0].fill(1)  # from now on it is known what one takes
    projects[0].do("pool", "drain", "--all")
    before_mib = available_mib()
    projects[0].fill(TOGETHER)
    each_mib = (before_mib - available_mib()) / TOGETHER
    projects[0].do("pool", "drain", "--all")
    lab.tell(f"F20: {PROJECTS} projects with the default settings")
    for project in projects:
        project.fill(1)
    kept = count_ready(site)
    lab.tell(f"F20: switching among {SWITCHED}")
    for project in projects[-SWITCHED:] * SWITCHES:
        settle(site)  # a person who switches is slower than a refill
        project.do("shell", "true")
    return [], lines(kept, [str(row.get("source")) for row in site.sessions()], each_mib)


def lend(lab: Lab, site: Site, project: Path) -> Site:
    """Make a project whose template is that of the lab's, and return its view of the site."""
    project.mkdir(mode=0o700)
    view = copy.copy(site)
    view.project = project
    view.share_template(lab.facts.home, lab.facts.record, lent=True)
    return view


def count_ready(site: Site) -> int:
    """Return how many projects have a ready VM."""
    return sum(row["warm"] > 0 for row in _rows(site))


def settle(site: Site) -> None:
    """Wait until the pool makes nothing; what it has no room for is not waited for."""
    deadline = time.monotonic() + SETTLED_S
    while time.monotonic() < deadline and any(
        row["making"] or (row["warm"] < row["wanted"] and not row["hindered_by"]) for row in _rows(site)
    ):
        time.sleep(LOOK_S)


def _rows(site: Site) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(site.do("pool", "status", "--json"))["pools"]
    return found


def lines(kept: int, sources: Sequence[str], each_mib: float) -> list[Line]:
    """Return F20's lines: how many projects had a ready VM, how sessions came to theirs, MiB of each VM."""
    warm = 100.0 * sources.count("warm") / len(sources) if sources else 0.0
    rows = [
        line("F20.ready", kept, f"{kept} on {host_memory_mib() / 1024:.0f} GB"),
        line("F20.warm", warm, f"{sources.count('warm')} of {len(sources)}"),
        line("F20.memory", each_mib, f"{each_mib:.0f} MiB"),
    ]
    return rows if host_memory_mib() >= HOST_MIB else [replace(row, judged=False) for row in rows]
