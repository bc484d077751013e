"""How much of what the pool may take is taken, and what hinders it. Pure: from the core's views."""

from collections.abc import Sequence

import msgspec

from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.core.policy import PoolPolicy
from claude_vm.supervisor.core.views import InstanceView, MemoryView, PoolView

_TAKES_NOTHING = "leaked"
"""The state of an instance that the core no longer counts: people were told of it."""

_AT_REST = frozenset({"warm", "paused", "running", _TAKES_NOTHING})
"""States that last until somebody does something. All others lead on by themselves."""

_ENDING = frozenset({"abandoned", "deleting", "stuck", _TAKES_NOTHING})
"""States of what is given up already."""


class Room(msgspec.Struct, frozen=True):
    """What the pool's bounds are, and how much is taken. Memory in MiB; a budget of None is no bound.

    `instances` counts all that take up resources, in sessions and ready; `memory_mib` is what those take that
    no session has. `available_mib` is what the host has left (None: nobody has looked), of which
    `memory_reserve_mib` shall stay. `moving`: some instance is being made or deleted, so room may come.
    """

    instances: int
    max_instances: int
    memory_mib: int
    memory_budget_mib: int | None
    available_mib: int | None
    memory_reserve_mib: int
    moving: bool

    def hindrance(self, memory_mib: int) -> str:
        """Return why there is no room for one more ready VM that takes so much memory, or ""."""
        if self.instances >= self.max_instances:
            return f"{self.instances} of {self.max_instances} VMs are in use ([pool] max_instances)"
        budget = self.memory_budget_mib
        if budget is not None and self.memory_mib + memory_mib > budget:
            return (
                f"{self.memory_mib} of {budget} MiB are in use for ready VMs, and {memory_mib} MiB"
                " are needed ([pool] memory_budget)"
            )
        left = self.available_mib
        if left is not None and left - memory_mib < 2 * self.memory_reserve_mib:
            return (
                f"this host has {left} MiB of memory available, {memory_mib} MiB are needed, and"
                f" {2 * self.memory_reserve_mib} MiB must stay free"
            )
        return ""


def room(policy: PoolPolicy, memory: MemoryView, instances: Sequence[InstanceView]) -> Room:
    """Return what is taken of what the policy allows."""
    return Room(
        instances=sum(i.state != _TAKES_NOTHING for i in instances),
        max_instances=policy.max_instances,
        memory_mib=memory.used_mib,
        memory_budget_mib=policy.memory_budget_mib,
        available_mib=memory.available_mib,
        memory_reserve_mib=policy.memory_reserve_mib,
        moving=any(i.state not in _AT_REST for i in instances),
    )


def unclaimed(pool: PoolView) -> int:
    """Return how many instances of a key there are, made or being made, that no session has."""
    return pool.warm + pool.making + pool.paused


def pool_of(key: PoolKey, pools: Sequence[PoolView]) -> PoolView | None:
    """Return what the pool has of a key, None if it does not know it."""
    return next((pool for pool in pools if pool.key == key), None)


def is_unclaimed(instance: InstanceView) -> bool:
    """Tell whether an instance is the pool's own: ready, or on its way to be, and no session's."""
    return not instance.session_id and instance.state not in _ENDING
