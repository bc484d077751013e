"""How much of what the pool may take is taken, and what hinders it. Pure: from the core's views."""

from collections.abc import Sequence

import msgspec

from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.core.policy import PoolPolicy
from claude_vm.supervisor.core.views import InstanceView, PoolView

_TAKES_NOTHING = "leaked"
"""The state of an instance that the core no longer counts: people were told of it."""

_AT_REST = frozenset({"warm", "paused", "running", _TAKES_NOTHING})
"""States that last until somebody does something. All others lead on by themselves."""

_ENDING = frozenset({"abandoned", "deleting", "stuck", _TAKES_NOTHING})
"""States of what is given up already."""


class Room(msgspec.Struct, frozen=True):
    """What the pool's bounds are, and how much is taken. Memory in MiB; a budget of None is no bound.

    `instances` counts all that take up resources, in sessions and ready; `memory_mib` is the configured
    memory of those that no session has. `moving`: some instance is being made or deleted, so room may come.
    """

    instances: int
    max_instances: int
    memory_mib: int
    memory_budget_mib: int | None
    moving: bool

    def hindrance(self, memory_mib: int) -> str:
        """Return why there is no room for one more ready VM of this memory, or ""."""
        if self.instances >= self.max_instances:
            return f"{self.instances} of {self.max_instances} VMs are in use ([pool] max_instances)"
        budget = self.memory_budget_mib
        if budget is not None and self.memory_mib + memory_mib > budget:
            return (
                f"{self.memory_mib} of {budget} MiB are in use for ready VMs, and {memory_mib} MiB"
                " are needed ([pool] memory_budget)"
            )
        return ""


def room(policy: PoolPolicy, pools: Sequence[PoolView], instances: Sequence[InstanceView]) -> Room:
    """Return what is taken of what the policy allows."""
    return Room(
        instances=sum(i.state != _TAKES_NOTHING for i in instances),
        max_instances=policy.max_instances,
        memory_mib=sum(p.key.memory_mib * unclaimed(p) for p in pools),
        memory_budget_mib=policy.memory_budget_mib,
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
    return instance.session_id is None and instance.key is not None and instance.state not in _ENDING
