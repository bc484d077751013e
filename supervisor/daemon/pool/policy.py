"""What the pool may do, from the settings of the daemon's user.

The pool is the daemon's, not a client's: what counts is the global file in the home directory that the daemon
was started with. It is read at the start and again when a session is requested, so that a change takes effect
without a restart.
"""

import os
from functools import cache
from pathlib import Path

import psutil
import structlog

from claude_vm.context.config.layers import Settings, load_settings
from claude_vm.context.config.problems import ConfigError
from claude_vm.context.errors import LinkError
from claude_vm.drivers.programs import Guard
from claude_vm.supervisor.core.policy import PoolPolicy

log = structlog.get_logger()

MIB_PER_GB = 1024
BYTES_PER_MIB = 1 << 20


PLACE_MIB = 768
"""``max_instances = "auto"``: memory of the host for each VM, in MiB. One that is ready takes about a third
of a GB, one in which somebody works one or two. What is really there is asked before each clone, see
`admission`."""

PLACES_PER_CORE = 16
"""``max_instances = "auto"``: most VMs for each core. A ready one takes up to a hundredth of a core."""

FEWEST_PLACES = 8
"""``max_instances = "auto"``: as many as this on any host."""

RESERVE_MIB = 512
RESERVE_SHARE = 0.05
"""When less than the larger of these is available on the host, ready VMs are given up."""


def auto_instances(host_memory_mib: int, cores: int) -> int:
    """Return how many VMs may be on a host of this size at a time, in sessions and ready."""
    return max(FEWEST_PLACES, min(host_memory_mib // PLACE_MIB, PLACES_PER_CORE * cores))


def pool_policy(settings: Settings, host_memory_mib: int, cores: int | None = None) -> PoolPolicy:
    """Return the policy that the settings ask for on a host with so much memory in MiB, and so many cores.

    Which drivers can start a VM ahead is no setting's business: see `DriverSet.prestarting`.
    """
    pool = settings.pool
    most = pool.max_instances
    if isinstance(most, str):
        most = auto_instances(host_memory_mib, cores or os.cpu_count() or 1)
    return PoolPolicy(
        size=pool.size,
        paused=int(pool.size > 0) if isinstance(pool.paused, str) else pool.paused,
        max_instances=most,
        idle_timeout_s=float(pool.idle_timeout),
        max_age_s=float(pool.max_age),
        memory_budget_mib=memory_mib(pool.memory_budget, host_memory_mib),
        memory_reserve_mib=max(RESERVE_MIB, int(host_memory_mib * RESERVE_SHARE)),
    )


def memory_mib(budget: str, host_memory_mib: int) -> int:
    """Return a memory budget in MiB: ``50%`` of the host's memory, or ``8GB`` (powers of 1024)."""
    if budget.endswith("%"):
        return host_memory_mib * int(budget[:-1]) // 100
    return int(budget.removesuffix("GB")) * MIB_PER_GB


@cache
def host_memory_mib() -> int:
    """Return how much memory this host has, in MiB. Asked once."""
    return int(psutil.virtual_memory().total) // BYTES_PER_MIB


def read_policy(home: Path, guard: Guard) -> PoolPolicy | None:
    """Return what the global file in a home directory says; None when something about that file is wrong.

    A wrong file must not take away VMs that were kept ready under the right one, nor hinder commands that
    don't need it. Who asks for a session gets the whole report.
    """
    try:
        # The settings of the pool have neither variables nor flags.
        settings = load_settings(flags={}, environ={}, home=home, guard=guard)
    except (LinkError, ConfigError) as error:
        log.warning("pool-settings-not-read", problems=error.lines or (error.message,))
        return None
    return pool_policy(settings, host_memory_mib())


def budget_problem(policy: PoolPolicy, vm_memory_mib: int) -> tuple[str, str] | None:
    """Return why no VM of this memory, in MiB, can be made ready before a session, and what helps."""
    budget = policy.memory_budget_mib
    if not policy.size or budget is None or budget >= vm_memory_mib:
        return None
    what = (
        f"no VM is kept ready yet: before the first session has measured what a VM takes, it counts with all"
        f" of its {vm_memory_mib} MiB, and the pool's memory budget is {budget} MiB"
    )
    return what, ("set [pool] memory_budget or [vm] memory in ~/.claude-vm.toml")
