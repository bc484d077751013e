"""Who waits, which instances are warm, and who gets what: the assignment alone, no effects.

Every operation costs the same however many instances and sessions there are.

The queue is served strictly in the order of the requests: only its head is ever considered, so that nobody
starves. A warm instance of another key gives way to the head when there is no other way, one at a time.
"""

from collections import OrderedDict
from enum import StrEnum

from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.core.policy import PoolPolicy

__all__ = ["Assign", "Pool", "PoolPolicy"]


class Assign(StrEnum):
    """What is to be done for the head of the queue."""

    CLAIM = "claim"
    MAKE = "make"
    EVICT = "evict"


class Pool:
    """The queue of sessions and the index of warm instances."""

    def __init__(self, policy: PoolPolicy) -> None:
        self._policy = policy
        self._queue: OrderedDict[str, PoolKey] = OrderedDict()
        self._warm: OrderedDict[str, PoolKey] = OrderedDict()
        self._warm_by_key: dict[PoolKey, OrderedDict[str, None]] = {}
        self._unclaimed: dict[PoolKey, int] = {}

    def enqueue(self, session_id: str, key: PoolKey) -> None:
        """Let a session wait behind all others."""
        self._queue[session_id] = key

    def dequeue(self, session_id: str) -> None:
        """Let a session wait no longer."""
        del self._queue[session_id]

    def expect(self, key: PoolKey) -> None:
        """Count an instance that is made without a session, until `take_out`."""
        self._unclaimed[key] = self._unclaimed.get(key, 0) + 1

    def add_warm(self, instance_id: str, key: PoolKey) -> None:
        """Offer an expected instance, now that it is ready, to the sessions with its key."""
        self._warm[instance_id] = key
        self._warm_by_key.setdefault(key, OrderedDict())[instance_id] = None

    def take_out(self, instance_id: str, key: PoolKey) -> None:
        """Neither expect nor offer an instance any longer: it is claimed, or given up."""
        _decrement(self._unclaimed, key)
        if self._warm.pop(instance_id, None) is not None:
            same = self._warm_by_key[key]
            del same[instance_id]
            if not same:
                del self._warm_by_key[key]

    def wants(self, key: PoolKey, *, held: int) -> bool:
        """Tell whether an unclaimed instance of a key may be made now; those who wait come first."""
        return (
            not self._queue
            and held < self._policy.max_instances
            and self._unclaimed.get(key, 0) < self._policy.size
        )

    def assign(self, *, held: int, leaving: int) -> tuple[Assign, str, str] | None:
        """Say what to do for the head of the queue: the deed, the session, the instance where there is one.

        `held` counts the instances that take up resources, `leaving` those of them whose end is decided.
        None: nothing can be done until something happens.
        """
        if not self._queue:
            return None
        session_id, key = next(iter(self._queue.items()))
        if same := self._warm_by_key.get(key):
            return Assign.CLAIM, session_id, next(iter(same))
        if held < self._policy.max_instances:
            return Assign.MAKE, session_id, ""
        if self._warm and not leaving:
            return Assign.EVICT, session_id, next(iter(self._warm))
        return None


def _decrement(counts: dict[PoolKey, int], key: PoolKey) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
