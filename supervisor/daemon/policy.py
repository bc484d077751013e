"""What the pool may do, from the settings of the daemon's user.

The pool is the daemon's, not a client's: what counts is the global file in the home directory that the daemon
was started with. It is read at the start and again when a session is requested, so that a change takes effect
without a restart.
"""

import sys
from functools import cache
from pathlib import Path

import psutil
import structlog

from claude_vm.context.config.layers import Settings, load_settings
from claude_vm.context.config.problems import ConfigError
from claude_vm.supervisor.core.policy import PoolPolicy

log = structlog.get_logger()

PRESTART_DRIVERS = frozenset({"lima", "qemu"} if sys.platform == "linux" else ())
"""Drivers that can start a VM's process ahead: only a RAM clone has something to wait for."""

MIB_PER_GB = 1024
BYTES_PER_MIB = 1 << 20


def pool_policy(settings: Settings, host_memory_mib: int) -> PoolPolicy:
    """Return the policy that the settings ask for on a host with so much memory in MiB."""
    pool = settings.pool
    return PoolPolicy(
        size=pool.size,
        paused=int(pool.size > 0) if isinstance(pool.paused, str) else pool.paused,
        prestart_drivers=PRESTART_DRIVERS,
        max_instances=pool.max_instances,
        idle_timeout_s=float(pool.idle_timeout),
        max_age_s=float(pool.max_age),
        memory_budget_mib=memory_mib(pool.memory_budget, host_memory_mib),
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


def read_policy(home: Path) -> PoolPolicy | None:
    """Return what the global file in a home directory says; None when something in that file is wrong.

    A wrong file must not take away VMs that were kept ready under the right one, nor hinder commands that
    don't need it. Who asks for a session gets the whole report.
    """
    try:
        # The settings of the pool have neither variables nor flags.
        settings = load_settings(flags={}, environ={}, home=home)
    except ConfigError as error:
        log.warning("pool-settings-not-read", problems=[str(problem) for problem in error.problems])
        return None
    return pool_policy(settings, host_memory_mib())


def budget_problem(policy: PoolPolicy, vm_memory_mib: int) -> tuple[str, str] | None:
    """Return why no VM of this memory, in MiB, can be kept ready, and what helps; None if one can."""
    budget = policy.memory_budget_mib
    if not policy.size or budget is None or budget >= vm_memory_mib:
        return None
    what = (
        f"a VM of {vm_memory_mib} MiB does not fit into the pool's memory budget of {budget} MiB, so none is"
        " kept ready, and every session waits for its clone"
    )
    return what, ("set [pool] memory_budget or [vm] memory in ~/.claude-vm.toml")
