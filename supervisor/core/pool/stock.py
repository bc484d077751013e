"""All shelves, and what of them can be said only together: ranks, memory, what is being made.

Unclaimed instances have a rank, and whatever gives way, for a place or for memory, is the lowest: what is
paused is below what is warm, and among equals what was used longer ago is lower. What is still being made
gives way when nothing is ready, and never for another unclaimed one.
"""

from collections import Counter, OrderedDict

from claude_vm.supervisor.core.deadlines import Ranking
from claude_vm.supervisor.core.invariants import Invariant, Invariants
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.core.policy import PoolPolicy
from claude_vm.supervisor.core.pool.memory import Memory
from claude_vm.supervisor.core.pool.shelf import Shelf

Worth = tuple[bool, float]
"""The rank of a ready instance, or of a wish for one: whether it is warm, and its key's last use."""


class Stock:
    """The shelves by key. The policy may be replaced.

    Every operation costs the same however many instances there are, but for the logarithm in a heap.
    """

    def __init__(self, policy: PoolPolicy) -> None:
        self.policy = policy
        self.memory = Memory()
        self._shelves: dict[PoolKey, Shelf] = {}
        self._of_template: dict[tuple[str, str], dict[PoolKey, None]] = {}
        self._unfinished: OrderedDict[str, PoolKey] = OrderedDict()
        # Keys with something paused, and with something warm, by their last use.
        self._ready: dict[bool, Ranking[PoolKey, float]] = {False: Ranking(), True: Ranking()}

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

    def by_use(self) -> list[Shelf]:
        """Return all shelves, least recently used first, as a list of the caller's own."""
        return sorted(self._shelves.values(), key=lambda shelf: shelf.recency)

    def of_template(self, driver: str, template: str) -> list[Shelf]:
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

    def rank(self, shelf: Shelf) -> None:
        """A key was used: what is ready of it is of a higher rank."""
        for ready in self._ready.values():
            if shelf.key in ready:
                ready.put(shelf.key, shelf.recency)

    # Unclaimed instances.

    @property
    def making(self) -> int:
        """How many unclaimed instances are neither warm nor paused yet."""
        return len(self._unfinished)

    def expect(self, instance_id: str, shelf: Shelf, *, made_at: float, paused: bool) -> None:
        """Count an instance that is made without a session, until `take_out`."""
        shelf.expect(instance_id, made_at=made_at, paused=paused)
        self._unfinished[instance_id] = shelf.key
        self.memory.expect(shelf.kind)

    def offer(self, instance_id: str, shelf: Shelf, at: float) -> None:
        """Offer an expected instance, now that it is warm or paused, to the sessions with its key."""
        ready = self._ready[shelf.offer(instance_id, at)]
        del self._unfinished[instance_id]
        self.memory.offer(shelf.kind)
        if shelf.key not in ready:
            ready.put(shelf.key, shelf.recency)

    def take_out(self, instance_id: str, shelf: Shelf) -> None:
        """Neither expect nor offer an instance any longer: it is claimed, or given up."""
        was_ready = shelf.take_out(instance_id)
        if not was_ready:
            del self._unfinished[instance_id]
        self.memory.take_out(shelf.kind, is_ready=was_ready)
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

    def least_missed(self) -> tuple[str, PoolKey] | None:
        """Return the unclaimed instance that is missed least, with its key."""
        return self.lowest() or next(iter(self._unfinished.items()), None)

    def displaceable_mib(self, below: Worth) -> int:
        """Return the memory of all that is ready and of a lower rank."""
        found = 0
        for is_warm, ranking in self._ready.items():
            for key in ranking:
                shelf = self._shelves[key]
                if (is_warm, shelf.recency) < below:
                    found += len(shelf.warm if is_warm else shelf.paused) * self.memory.takes_mib(shelf.kind)
        return found

    # What must hold.

    def invariants(self) -> Invariants:
        """Yield what must hold of the shelves, and of what is kept beside them."""
        unclaimed, ready, making = Counter[PoolKey](), Counter[PoolKey](), dict[str, PoolKey]()
        for key, shelf in self._shelves.items():
            yield from shelf.invariants()
            siblings = self._of_template.get((key.driver, key.template), ())
            yield Invariant(key, "its template knows it", shelf.key == key and key in siblings)
            unclaimed[shelf.kind] += len(shelf.making) + len(shelf.paused) + len(shelf.warm)
            ready[shelf.kind] += len(shelf.paused) + len(shelf.warm)
            making |= dict.fromkeys(shelf.making, key)
            for is_warm, stands in ((False, shelf.paused), (True, shelf.warm)):
                rank = self._ready[is_warm].rank(key)
                yield Invariant(
                    key, "what is ready has its rank", rank == (shelf.recency if stands else None)
                )
        yield from self.memory.invariants(+unclaimed, ready)
        yield Invariant("stock", "it knows what is being made", making == dict(self._unfinished))
        known = sum(len(keys) for keys in self._of_template.values())
        yield Invariant("stock", "no template knows more", known == len(self._shelves))
        ranked = sum(key not in self._shelves for ready in self._ready.values() for key in ready)
        yield Invariant("stock", "nothing else has a rank", not ranked)
