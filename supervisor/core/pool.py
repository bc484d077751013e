"""Who waits, which instances nobody has claimed, and who gets what: the assignment alone, no effects.

Every operation costs the same however many instances and sessions there are, but for the logarithm in a heap.

The queue is served strictly in the order of the requests: only its head is ever considered, so that nobody
starves. It gets what is ready of its key, else what is being made without a session, else one of its own.
A warm or paused instance of another key gives way to the head when there is no other way, one at a
time, that of the key which was not used for longest.
"""

from collections import OrderedDict
from enum import StrEnum

from claude_vm.supervisor.core.deadlines import Ranking
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.core.policy import PoolPolicy
from claude_vm.supervisor.core.shelf import Shelf

__all__ = ["Assign", "Pool", "PoolPolicy"]


class Assign(StrEnum):
    """What is to be done for the head of the queue."""

    CLAIM = "claim"
    MAKE = "make"
    EVICT = "evict"


class Pool:
    """The queue of sessions, and the shelves.

    `memory_mib` is the configured memory of all unclaimed instances, `making` the number of those of them
    that are neither warm nor paused yet. The policy may be replaced.
    """

    def __init__(self, policy: PoolPolicy) -> None:
        self.policy = policy
        self.memory_mib = 0
        self.making = 0
        self._queue: OrderedDict[str, PoolKey] = OrderedDict()
        self._shelves: dict[PoolKey, Shelf] = {}
        self._of_template: dict[tuple[str, str], dict[PoolKey, None]] = {}
        self._ready: Ranking[PoolKey] = Ranking()  # keys with something warm or paused, by their last use

    # The queue.

    @property
    def is_awaited(self) -> bool:
        """Whether a session waits."""
        return bool(self._queue)

    def enqueue(self, session_id: str, key: PoolKey) -> None:
        """Let a session wait behind all others."""
        self._queue[session_id] = key

    def enqueue_first(self, session_id: str, key: PoolKey) -> None:
        """Let a session wait before all others: it has had its turn, for nothing."""
        self._queue[session_id] = key
        self._queue.move_to_end(session_id, last=False)

    def dequeue(self, session_id: str) -> None:
        """Let a session wait no longer."""
        del self._queue[session_id]

    # The shelves.

    def shelf(self, key: PoolKey) -> Shelf:
        """Return a key's shelf, an empty one if there was none."""
        shelf = self._shelves.get(key)
        if shelf is None:
            shelf = self._shelves[key] = Shelf(key)
            self._of_template.setdefault((key.driver, key.template), {})[key] = None
        return shelf

    def find(self, key: PoolKey) -> Shelf | None:
        """Return a key's shelf, or None."""
        return self._shelves.get(key)

    def shelves(self) -> list[Shelf]:
        """Return all shelves, as a list of the caller's own."""
        return list(self._shelves.values())

    def shelves_of(self, driver: str, template: str) -> list[Shelf]:
        """Return the shelves of all generations of a template, as a list of the caller's own."""
        return [self._shelves[key] for key in self._of_template.get((driver, template), ())]

    def tidy(self, shelf: Shelf) -> None:
        """Remove a shelf that nothing stands on and that nobody wants."""
        key = shelf.key
        if shelf.is_needless and self._shelves.pop(key, None) is not None:
            same = self._of_template[key.driver, key.template]
            del same[key]
            if not same:
                del self._of_template[key.driver, key.template]

    def use(self, shelf: Shelf, at: float) -> None:
        """Note that a key is used."""
        shelf.last_used_at = at
        if shelf.key in self._ready:
            self._ready.put(shelf.key, at)

    # Unclaimed instances.

    def expect(self, instance_id: str, shelf: Shelf, *, made_at: float, paused: bool) -> None:
        """Count an instance that is made without a session, until `take_out`."""
        shelf.making[instance_id] = made_at
        if paused:
            shelf.to_pause.add(instance_id)
        self.memory_mib += shelf.key.memory_mib
        self.making += 1

    def offer(self, instance_id: str, shelf: Shelf) -> None:
        """Offer an expected instance, now that it is warm or paused, to the sessions with its key."""
        made_at = shelf.making.pop(instance_id)
        paused = instance_id in shelf.to_pause
        (shelf.paused if paused else shelf.warm)[instance_id] = made_at
        shelf.to_pause.discard(instance_id)
        self.making -= 1
        if shelf.key not in self._ready:
            self._ready.put(shelf.key, shelf.recency)

    def take_out(self, instance_id: str, shelf: Shelf) -> None:
        """Neither expect nor offer an instance any longer: it is claimed, or given up."""
        if shelf.making.pop(instance_id, None) is not None:
            shelf.to_pause.discard(instance_id)
            self.making -= 1
        elif shelf.warm.pop(instance_id, None) is None:
            del shelf.paused[instance_id]
        self.memory_mib -= shelf.key.memory_mib
        if not shelf.warm and not shelf.paused:
            self._ready.discard(shelf.key)

    def least_used(self) -> Shelf | None:
        """Return the shelf with something warm or paused whose last use is longest ago, or None."""
        first = self._ready.first()
        return None if first is None else self._shelves[first[1]]

    def displaceable_mib(self, before: float) -> int:
        """Return the memory of all that is warm or paused of keys that were last used before an instant."""
        shelves = (self._shelves[key] for key in self._ready)
        return sum(
            (len(shelf.warm) + len(shelf.paused)) * shelf.key.memory_mib
            for shelf in shelves
            if shelf.recency < before
        )

    def assign(self, *, held: int, leaving: int) -> tuple[Assign, str, str] | None:
        """Say what to do for the head of the queue: the deed, the session, the instance where there is one.

        `held` counts the instances that take up resources, `leaving` those of them whose end is decided.
        None: nothing can be done until something happens.
        """
        if not self._queue:
            return None
        session_id, key = next(iter(self._queue.items()))
        shelf = self._shelves.get(key)
        if shelf is not None and (found := shelf.furthest()):
            return Assign.CLAIM, session_id, found
        if held < self.policy.max_instances:
            return Assign.MAKE, session_id, ""
        if not leaving and (other := self.least_used()) is not None:
            return Assign.EVICT, session_id, other.least_ready()
        return None
