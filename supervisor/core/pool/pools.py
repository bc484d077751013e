"""All pools, and what of them can be said only together: ranks, memory, what is being made.

Unclaimed instances have a rank, and whatever gives way, for a place or for memory, is the lowest: what is
paused is below what is warm, and among equals what was used longer ago is lower. What is still being made
gives way when nothing is ready, and never for another unclaimed one.
"""

from collections import Counter, OrderedDict

from claude_vm.supervisor.core.deadlines import Ranking
from claude_vm.supervisor.core.invariants import Invariant, Invariants
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.core.policy import PoolPolicy
from claude_vm.supervisor.core.pool.key_pool import KeyPool
from claude_vm.supervisor.core.pool.memory import Memory

Worth = tuple[bool, float]
"""The rank of a ready instance, or of the demand for one: whether it is warm, and its key's last use."""


class Pools:
    """The pools by key. The policy may be replaced.

    Every operation costs the same however many instances there are, but for the logarithm in a heap.
    """

    def __init__(self, policy: PoolPolicy) -> None:
        self.policy = policy
        self.memory = Memory()
        self._pools: dict[PoolKey, KeyPool] = {}
        self._of_template: dict[tuple[str, str], dict[PoolKey, None]] = {}
        self._unfinished: OrderedDict[str, PoolKey] = OrderedDict()
        # Keys with something paused, and with something warm, by their last use.
        self._ready: dict[bool, Ranking[PoolKey, float]] = {False: Ranking(), True: Ranking()}

    # The pools.

    def pool(self, key: PoolKey) -> KeyPool:
        """Return a key's pool, an empty one if there was none."""
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = KeyPool(key, key.kind)
            self._of_template.setdefault((key.driver, key.template), {})[key] = None
        return pool

    def find(self, key: PoolKey) -> KeyPool | None:
        """Return a key's pool, or None."""
        return self._pools.get(key)

    def by_use(self) -> list[KeyPool]:
        """Return all pools, least recently used first, as a list of the caller's own."""
        return sorted(self._pools.values(), key=lambda pool: pool.recency)

    def of_template(self, driver: str, template: str) -> list[KeyPool]:
        """Return the pools of all generations of a template, as a list of the caller's own."""
        return [self._pools[key] for key in self._of_template.get((driver, template), ())]

    def tidy(self, pool: KeyPool) -> None:
        """Remove a pool that has nothing and that nobody wants."""
        key = pool.key
        if pool.is_needless and self._pools.pop(key, None) is not None:
            same = self._of_template[key.driver, key.template]
            del same[key]
            if not same:
                del self._of_template[key.driver, key.template]

    def rank(self, pool: KeyPool) -> None:
        """A key was used: what is ready of it is of a higher rank."""
        for ready in self._ready.values():
            if pool.key in ready:
                ready.put(pool.key, pool.recency)

    # Unclaimed instances.

    @property
    def making(self) -> int:
        """How many unclaimed instances are neither warm nor paused yet."""
        return len(self._unfinished)

    def expect(self, instance_id: str, pool: KeyPool, *, made_at: float, paused: bool) -> None:
        """Count an instance that is made without a session, until `take_out`."""
        pool.expect(instance_id, made_at=made_at, paused=paused)
        self._unfinished[instance_id] = pool.key
        self.memory.expect(pool.kind)

    def offer(self, instance_id: str, pool: KeyPool, at: float) -> None:
        """Offer an expected instance, now that it is warm or paused, to the sessions with its key."""
        ready = self._ready[pool.offer(instance_id, at)]
        del self._unfinished[instance_id]
        self.memory.offer(pool.kind)
        if pool.key not in ready:
            ready.put(pool.key, pool.recency)

    def take_out(self, instance_id: str, pool: KeyPool) -> None:
        """Neither expect nor offer an instance any longer: it is claimed, or given up."""
        was_ready = pool.take_out(instance_id)
        if not was_ready:
            del self._unfinished[instance_id]
        self.memory.take_out(pool.kind, is_ready=was_ready)
        for is_warm, left in ((False, pool.paused), (True, pool.warm)):
            if not left:
                self._ready[is_warm].discard(pool.key)

    def lowest(self, below: Worth | None = None) -> tuple[str, PoolKey] | None:
        """Return the ready instance of the lowest rank, with its key, if that is below another rank."""
        for is_warm, ranking in self._ready.items():
            first = ranking.first()
            if first is not None and (below is None or (is_warm, first[0]) < below):
                pool = self._pools[first[1]]
                return next(iter(pool.warm if is_warm else pool.paused)), pool.key
        return None

    def least_missed(self) -> tuple[str, PoolKey] | None:
        """Return the unclaimed instance that is missed least, with its key."""
        return self.lowest() or next(iter(self._unfinished.items()), None)

    def displaceable_mib(self, below: Worth) -> int:
        """Return the memory of all that is ready and of a lower rank."""
        found = 0
        for is_warm, ranking in self._ready.items():
            for key in ranking:
                pool = self._pools[key]
                if (is_warm, pool.recency) < below:
                    found += len(pool.warm if is_warm else pool.paused) * self.memory.takes_mib(pool.kind)
        return found

    # What must hold.

    def invariants(self) -> Invariants:
        """Yield what must hold of the pools, and of what is kept beside them."""
        unclaimed, ready, making = Counter[PoolKey](), Counter[PoolKey](), dict[str, PoolKey]()
        for key, pool in self._pools.items():
            yield from pool.invariants()
            siblings = self._of_template.get((key.driver, key.template), ())
            yield Invariant(key, "its template knows it", pool.key == key and key in siblings)
            unclaimed[pool.kind] += len(pool.making) + len(pool.paused) + len(pool.warm)
            ready[pool.kind] += len(pool.paused) + len(pool.warm)
            making |= dict.fromkeys(pool.making, key)
            for is_warm, stands in ((False, pool.paused), (True, pool.warm)):
                rank = self._ready[is_warm].rank(key)
                yield Invariant(key, "what is ready has its rank", rank == (pool.recency if stands else None))
        yield from self.memory.invariants(+unclaimed, ready)
        yield Invariant("pools", "it knows what is being made", making == dict(self._unfinished))
        known = sum(len(keys) for keys in self._of_template.values())
        yield Invariant("pools", "no template knows more", known == len(self._pools))
        ranked = sum(key not in self._pools for ready in self._ready.values() for key in ready)
        yield Invariant("pools", "nothing else has a rank", not ranked)
