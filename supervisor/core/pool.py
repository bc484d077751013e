"""Who waits, which instances nobody has claimed, and who gets what: the assignment alone, no effects.

Every operation costs the same however many instances and sessions there are, but for the logarithm in a heap.

The queue is served strictly in the order of the requests: only its head is ever considered, so that nobody
starves. It gets what is ready of its key, else what is being made without a session, else one of its own.
When there is no place for that, unclaimed instances of other keys give way: one for the head, and one for
each further session, unless another one waits for that key.

Unclaimed instances have a rank, and whatever gives way, for a place or for memory, is the lowest: what is
paused is below what is warm, and among equals what was used longer ago is lower. What is still being made
gives way when nothing is ready, and never for another unclaimed one.
"""

from collections import Counter, OrderedDict
from enum import StrEnum

from claude_vm.supervisor.core.deadlines import Ranking
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.core.memory import Memory
from claude_vm.supervisor.core.policy import PoolPolicy
from claude_vm.supervisor.core.shelf import Shelf

__all__ = ["Assign", "Pool", "PoolPolicy", "Worth"]

Worth = tuple[bool, float]
"""The rank of a ready instance, or of a wish for one: whether it is warm, and its key's last use."""


class Assign(StrEnum):
    """What is to be done for the head of the queue."""

    CLAIM = "claim"
    MAKE = "make"
    EVICT = "evict"


class Pool:
    """The queue of sessions, and the shelves.

    `memory` has what all unclaimed instances take. The policy may be replaced.
    """

    def __init__(self, policy: PoolPolicy) -> None:
        self.policy = policy
        self.memory = Memory()
        self._queue: OrderedDict[str, PoolKey] = OrderedDict()
        self._awaited: Counter[PoolKey] = Counter()
        self._shelves: dict[PoolKey, Shelf] = {}
        self._of_template: dict[tuple[str, str], dict[PoolKey, None]] = {}
        self._unfinished: OrderedDict[str, PoolKey] = OrderedDict()
        # Keys with something paused, and with something warm, by their last use.
        self._ready: dict[bool, Ranking[PoolKey, float]] = {False: Ranking(), True: Ranking()}

    # The queue.

    @property
    def is_awaited(self) -> bool:
        """Whether a session waits."""
        return bool(self._queue)

    def enqueue(self, session_id: str, key: PoolKey) -> None:
        """Let a session wait behind all others."""
        self._queue[session_id] = key
        self._awaited[key] += 1

    def enqueue_first(self, session_id: str, key: PoolKey) -> None:
        """Let a session wait before all others: it has had its turn, for nothing."""
        self.enqueue(session_id, key)
        self._queue.move_to_end(session_id, last=False)

    def dequeue(self, session_id: str) -> None:
        """Let a session wait no longer."""
        key = self._queue.pop(session_id)
        self._awaited[key] -= 1
        if not self._awaited[key]:
            del self._awaited[key]

    # The shelves.

    def shelf(self, key: PoolKey) -> Shelf:
        """Return a key's shelf, an empty one if there was none."""
        shelf = self._shelves.get(key)
        if shelf is None:
            shelf = self._shelves[key] = Shelf(key, key.kind)
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
        shelf.credit = sum(shelf.targets(self.policy))
        for ready in self._ready.values():
            if shelf.key in ready:
                ready.put(shelf.key, at)

    # Unclaimed instances.

    @property
    def making(self) -> int:
        """How many unclaimed instances are neither warm nor paused yet."""
        return len(self._unfinished)

    def expect(self, instance_id: str, shelf: Shelf, *, made_at: float, paused: bool) -> None:
        """Count an instance that is made without a session, until `take_out`."""
        shelf.making[instance_id] = made_at
        if paused:
            shelf.to_pause.add(instance_id)
        self._unfinished[instance_id] = shelf.key
        self.memory.expect(shelf.kind)

    def offer(self, instance_id: str, shelf: Shelf) -> None:
        """Offer an expected instance, now that it is warm or paused, to the sessions with its key."""
        made_at = shelf.making.pop(instance_id)
        paused = instance_id in shelf.to_pause
        (shelf.paused if paused else shelf.warm)[instance_id] = made_at
        shelf.to_pause.discard(instance_id)
        del self._unfinished[instance_id]
        self.memory.offer(shelf.kind)
        if shelf.key not in self._ready[not paused]:
            self._ready[not paused].put(shelf.key, shelf.recency)

    def take_out(self, instance_id: str, shelf: Shelf) -> None:
        """Neither expect nor offer an instance any longer: it is claimed, or given up."""
        is_ready = shelf.making.pop(instance_id, None) is None
        if not is_ready:
            shelf.to_pause.discard(instance_id)
            del self._unfinished[instance_id]
        elif shelf.warm.pop(instance_id, None) is None:
            del shelf.paused[instance_id]
        self.memory.take_out(shelf.kind, is_ready=is_ready)
        for is_warm, left in ((False, shelf.paused), (True, shelf.warm)):
            if not left:
                self._ready[is_warm].discard(shelf.key)

    def lowest(self, below: Worth | None = None) -> tuple[str, PoolKey] | None:
        """Return the ready instance of the lowest rank, with its key, if that is below another rank."""
        for is_warm, ranking in self._ready.items():
            first = ranking.first()
            if first is not None and (below is None or (is_warm, first[0]) < below):
                shelf = self._shelves[first[1]]
                return next(iter(shelf.warm if is_warm else shelf.paused)), shelf.key
        return None

    def displaceable_mib(self, below: Worth) -> int:
        """Return the memory of all that is ready and of a lower rank."""
        found = 0
        for is_warm, ranking in self._ready.items():
            for key in ranking:
                shelf = self._shelves[key]
                if (is_warm, shelf.recency) < below:
                    found += len(shelf.warm if is_warm else shelf.paused) * self.memory.takes_mib(shelf.kind)
        return found

    def burden(self, *, held: int) -> tuple[str, str] | None:
        """Return an unclaimed instance that there is no place or no memory for any more, and why.

        `held` counts the instances that take up places and whose end is not decided.
        """
        if held > self.policy.max_instances:
            why = "there are fewer places"
        elif self.memory.excess_mib(self.policy) > 0:
            why = "the memory is short"
        else:
            return None
        found = self._victim()
        return None if found is None else (found[0], why)

    def _victim(self) -> tuple[str, PoolKey] | None:
        """Return the unclaimed instance that is missed least, with its key."""
        return self.lowest() or next(iter(self._unfinished.items()), None)

    def assign(self, *, held: int, leaving: int) -> tuple[Assign, str, str] | None:
        """Say what to do for the head of the queue: the deed, the session, the instance where there is one.

        `held` counts the instances that take up resources, `leaving` those of them that will soon be gone.
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
        other = self._victim()
        if other is not None and leaving < (1 if other[1] in self._awaited else len(self._queue)):
            return Assign.EVICT, session_id, other[0]
        return None
