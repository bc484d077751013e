"""What is made ahead of need: the pools, the demand, the refills. Only this package writes them.

A key is wanted from its first use until `idle_timeout_s` after its last one. What a wanted key lacks is the
business of `refills`; what is in the pools, and which of it gives way first, that of `pools`.

Whoever calls gives up the instances that are named in the answers; the pools follow when they are told
(`lose`). No operation costs more because there are more instances, but for those that are about all of
them: `forget_all`, and changes of the policy or of a template.
"""

from collections.abc import Iterable

from claude_vm.supervisor.core.due import Aged, Agenda, Idle, Refill
from claude_vm.supervisor.core.effects import RequestWarm
from claude_vm.supervisor.core.events import WarmFound, WarmRequested
from claude_vm.supervisor.core.instance import InstanceState
from claude_vm.supervisor.core.invariants import Invariant, Invariants
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.core.policy import PoolPolicy
from claude_vm.supervisor.core.pool.generations import Generations
from claude_vm.supervisor.core.pool.key_pool import KeyPool
from claude_vm.supervisor.core.pool.pools import Pools
from claude_vm.supervisor.core.pool.refills import Displace, Refills
from claude_vm.supervisor.core.views import MemoryView, PoolView


class Supply:
    """The pool: what it has, what it shall have, and what follows from that."""

    def __init__(self, policy: PoolPolicy, agenda: Agenda) -> None:
        self._pools = Pools(policy)
        self._agenda = agenda
        self._refills = Refills(self._pools, agenda)
        self._generations = Generations()

    # What there is.

    @property
    def policy(self) -> PoolPolicy:
        """The policy that is obeyed now."""
        return self._pools.policy

    @property
    def memory(self) -> MemoryView:
        """What the unclaimed instances take, and what the host has left."""
        return MemoryView(self._pools.memory.used_mib, self._pools.memory.available_mib)

    def takes_mib(self, key: PoolKey) -> int | None:
        """Return what was measured of a key's kind, with the margin, in MiB; None if nothing was yet."""
        memory, kind = self._pools.memory, key.kind
        return memory.takes_mib(kind) if memory.is_measured(kind) else None

    def furthest(self, key: PoolKey) -> str:
        """Return the unclaimed instance that a session gets, a ready one before the others; "" if none."""
        pool = self._pools.find(key)
        return "" if pool is None else pool.furthest()

    def least_missed(self) -> tuple[str, PoolKey] | None:
        """Return the unclaimed instance that gives way to a session, with its key."""
        return self._pools.least_missed()

    def excess(self, *, staying: int) -> tuple[str, PoolKey, str] | None:
        """Return an unclaimed instance that there is no place or no memory for any more, its key, and why.

        `staying` counts the instances that take up places and whose end is not decided.
        """
        policy = self._pools.policy
        if staying > policy.max_instances:
            why = "there are fewer places"
        elif self._pools.memory.excess_mib(policy) > 0:
            why = "the memory is short"
        else:
            return None
        found = self._pools.least_missed()
        return None if found is None else (*found, why)

    # Demand.

    def notice(self, key: PoolKey, at: float) -> list[str]:
        """Somebody has read a key from disk: return what to give up if that is a later generation.

        Other supervisors of the same home build templates too, and tell nobody.
        """
        if not self._generations.is_news(key):
            return []
        return self.change_template(key.driver, key.template, key.generation, at)

    def want(self, key: PoolKey, at: float) -> None:
        """A session asks for an instance of a key; from now on the pool wants the key."""
        current = self._generations.current(key)
        if current is not None:
            pool = self._pools.pool(current)
            pool.request(at, self._pools.policy)
            self._want(pool, at, at)

    def fill(self, key: PoolKey, size: int | None, at: float) -> None:
        """Somebody wants so many warm instances of a key, now."""
        current = self._generations.current(key)
        if current is not None:
            pool = self._pools.pool(current)
            pool.fill(size, at)
            self._want(pool, at, at)

    def forget(self, key: PoolKey) -> list[str]:
        """Nobody wants a key any more: return the instances to give up."""
        pool = self._pools.find(key)
        return [] if pool is None else self._forget(pool)

    def forget_all(self) -> list[str]:
        """Nobody wants any key any more: return the instances to give up."""
        return [name for pool in self._pools.by_use() for name in self._forget(pool)]

    def change_template(
        self,
        driver: str,
        template: str,
        generation: str,
        at: float,
        *,
        sizes: tuple[int, int, int] | None = None,
    ) -> list[str]:
        """A template has another generation ("": none): return the instances to give up.

        Demand for other `sizes` (processors, MiB, GiB) than the new one's ends, where those are known.
        """
        self._generations.hear(driver, template, generation)
        gone = []
        for pool in self._pools.of_template(driver, template):
            if pool.key.generation == generation:
                continue
            wanted, filled_to = pool.wanted, pool.filled_to
            used_at = at if pool.claimed else pool.recency
            gone += self._forget(pool)
            current = self._generations.current(pool.key)
            if wanted and current is not None and sizes in {None, current.sizes}:
                successor = self._pools.pool(current)
                successor.filled_to = filled_to
                successor.postpone(at, self._pools.policy)
                self._want(successor, max(used_at, successor.recency), at)
        return gone

    def change_policy(self, policy: PoolPolicy, at: float) -> list[str]:
        """The settings are different: return the instances to give up, whether there is room or not."""
        self._pools.policy = policy
        gone: dict[str, None] = {}
        for pool in self._pools.by_use():
            surplus = pool.surplus(policy) if any(pool.targets(policy)) else self._forget(pool)
            gone.update(dict.fromkeys(surplus))
            if pool.wanted:
                self._agenda.set(Idle(pool.key), max(at, pool.recency + policy.idle_timeout_s))
            for name, made_at in pool.unclaimed():
                self._agenda.set(Aged(name), max(at, made_at + policy.max_age_s))
            pool.grant(policy)
            self._refills.consider(pool, at, anew=True)
        return list(gone)

    def measure(self, taken: Iterable[tuple[PoolKey, int]], available_mib: int | None, at: float) -> None:
        """Somebody has looked at the memory."""
        memory = self._pools.memory
        for key, taken_mib in taken:
            memory.measure(key.kind, taken_mib)
        if available_mib is not None:
            memory.hear(available_mib)
        self._refills.consider_starved(at)

    def due(self, what: Idle | Refill, at: float) -> list[str]:
        """An instant that was asked for has come: return the instances to give up."""
        pool = self._pools.pool(what.key)
        if isinstance(what, Refill):
            self._refills.consider(pool, at)
            return []
        since = at if pool.claimed else pool.recency
        until = since + self._pools.policy.idle_timeout_s
        if until > at:
            self._agenda.set(what, until)
            return []
        return self._forget(pool)

    # What happens to instances.

    def lease(self, key: PoolKey, at: float) -> None:
        """A session has an instance of a key that was made for it."""
        pool = self._pools.pool(key)
        pool.lease(at, self._pools.policy)
        self._refills.consider(pool, at)

    def claim(self, instance_id: str, key: PoolKey, at: float, *, was_ready: bool) -> None:
        """A session takes an unclaimed instance."""
        self.lose(instance_id, key, at)
        if was_ready:  # else nobody knows yet whether it comes to anything
            self._pools.pool(key).clear_failures()
        self.lease(key, at)

    def release(self, key: PoolKey, at: float) -> None:
        """A session has its instance no longer; that was a use until now."""
        pool = self._pools.pool(key)
        pool.release(at, self._pools.policy)
        self._pools.rank(pool)
        self._refills.consider(pool, at, anew=True)

    def adopt(self, event: WarmFound, *, capacity: int) -> bool:
        """Tell whether a found instance has a place; if so, its key is wanted and it is expected."""
        key, at, policy = event.key, event.at, self._pools.policy
        if not (
            policy.size
            and self._generations.current(key) == key
            and at < event.made_at + policy.max_age_s
            and self._refills.has_room(key.kind, capacity=capacity)
        ):
            return False
        pool = self._pools.pool(key)
        self._expect(event.instance_id, pool, made_at=event.made_at, paused=False)
        self._want(pool, at, at)
        return True

    def answer(self, event: WarmRequested, *, capacity: int) -> bool:
        """Take the answer to a request; tell whether the instance is to be made and is expected now."""
        key, at = event.key, event.at
        if event.available_mib is not None:
            self._pools.memory.hear(event.available_mib)
        pool = self._pools.find(key)
        if pool is None or not pool.asked:
            return False
        self._refills.take_answer(pool)
        granted = pool.lack(self._pools.policy) is event.paused and self._refills.has_room(
            key.kind, capacity=capacity
        )
        if granted:
            self._expect(event.instance_id, pool, made_at=at, paused=event.paused)
        self._refills.consider(pool, at)
        return granted

    def offer(self, instance_id: str, key: PoolKey, at: float) -> None:
        """An expected instance is warm or paused now."""
        pool = self._pools.pool(key)
        self._pools.offer(instance_id, pool, at)
        self._refills.consider(pool, at)
        self._refills.consider_starved(at)  # what is still being made gives way to nobody; now it may

    def lose(self, instance_id: str, key: PoolKey, at: float) -> None:
        """An instance is unclaimed no longer: it is claimed, or given up, or has failed."""
        pool = self._pools.pool(key)
        self._agenda.discard(Aged(instance_id))
        self._pools.take_out(instance_id, pool)
        self._refills.consider(pool, at)

    def give_way(self, key: PoolKey, why: str) -> None:
        """An instance of a key is about to be given up for something else."""
        self._pools.pool(key).gave_way = why

    def fail(self, key: PoolKey, error: str, at: float) -> None:
        """An unclaimed instance came to nothing, and will be lost: the next one has to wait."""
        self._pools.pool(key).fail(error, at)

    # What is to be done.

    @property
    def is_short(self) -> bool:
        """Whether a key may have one more instance as soon as there is room."""
        return self._refills.is_short

    def next_step(
        self, *, capacity: int, leaving: int, awaited: bool, at: float
    ) -> RequestWarm | Displace | None:
        """Return what to do next to meet the demand; see `Refills.next_step`."""
        return self._refills.next_step(capacity=capacity, leaving=leaving, awaited=awaited, at=at)

    def views(self) -> list[PoolView]:
        """Return what may be seen of each pool, least recently used first."""
        return [
            PoolView(
                key=pool.key,
                wanted=pool.targets(self._pools.policy)[0] if pool.wanted else 0,
                warm=len(pool.warm),
                making=len(pool.making) + pool.asked,
                paused=len(pool.paused),
                claimed=pool.claimed,
                last_used_at=pool.last_used_at,
                failures=pool.failures,
                last_error=pool.last_error or self._never_fits(pool),
                next_try_at=self._agenda.at(Refill(pool.key)),
                takes_mib=self._pools.memory.takes_mib(pool.kind),
                is_measured=self._pools.memory.is_measured(pool.kind),
                gave_way=pool.gave_way,
            )
            for pool in self._pools.by_use()
        ]

    # What must hold.

    def unclaimed(self) -> dict[str, tuple[PoolKey, InstanceState | None]]:
        """Return all unclaimed instances, each with its key and, if it is ready, its state."""
        found: dict[str, tuple[PoolKey, InstanceState | None]] = {}
        for pool in self._pools.by_use():
            found |= dict.fromkeys(pool.making, (pool.key, None))
            found |= dict.fromkeys(pool.paused, (pool.key, InstanceState.PAUSED))
            found |= dict.fromkeys(pool.warm, (pool.key, InstanceState.WARM))
        return found

    def claimed(self) -> dict[PoolKey, int]:
        """Return how many instances sessions have, by key."""
        return {pool.key: pool.claimed for pool in self._pools.by_use() if pool.claimed}

    def dues(self) -> set[Aged | Idle | Refill]:
        """Return what is due for the supply's sake."""
        pools = self._pools.by_use()
        aged = {Aged(name) for pool in pools for name, _ in pool.unclaimed()}
        idle = {Idle(pool.key) for pool in pools if pool.wanted}
        waiting = {Refill(pool.key) for pool in pools if self._agenda.at(Refill(pool.key)) is not None}
        return aged | idle | waiting

    def invariants(self) -> Invariants:
        """Yield what must hold of the pool by itself."""
        yield from self._pools.invariants()
        yield from self._refills.invariants()
        for pool in self._pools.by_use():
            current = self._generations.current(pool.key) == pool.key
            yield Invariant(pool.key, "what is wanted is of today", current or not pool.wanted)

    # Beneath.

    def _want(self, pool: KeyPool, used_at: float, at: float) -> None:
        pool.use(used_at, self._pools.policy)
        self._pools.rank(pool)
        if any(pool.targets(self._pools.policy)) and not pool.wanted:
            pool.wanted = True
            self._agenda.set(Idle(pool.key), used_at + self._pools.policy.idle_timeout_s)
        self._refills.consider(pool, at, anew=True)  # a later use may displace others

    def _forget(self, pool: KeyPool) -> list[str]:
        pool.forget()
        self._agenda.discard(Idle(pool.key))
        self._refills.leave(pool.key)
        unclaimed = [name for name, _ in pool.unclaimed()]
        self._pools.tidy(pool)
        return unclaimed

    def _expect(self, instance_id: str, pool: KeyPool, *, made_at: float, paused: bool) -> None:
        self._pools.expect(instance_id, pool, made_at=made_at, paused=paused)
        self._agenda.set(Aged(instance_id), made_at + self._pools.policy.max_age_s)

    def _never_fits(self, pool: KeyPool) -> str:
        budget, takes_mib = self._pools.policy.memory_budget_mib, self._pools.memory.takes_mib(pool.kind)
        if not pool.wanted or budget is None or takes_mib <= budget:
            return ""
        return f"memory-budget: {takes_mib} MiB are needed, {budget} MiB are the whole budget"
