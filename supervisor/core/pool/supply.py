"""What is made ahead of need, and for whom: the shelves, the wishes, the refills. The only writer of them.

A key is wanted from its first use until `idle_timeout_s` after its last one. What a wanted key lacks is the
business of `refills`; what stands on the shelves, and which of it gives way first, that of `stock`.

Whoever calls gives up the instances that are named in the answers; the shelves follow when they are told
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
from claude_vm.supervisor.core.pool.refills import Displace, Refills
from claude_vm.supervisor.core.pool.shelf import Shelf
from claude_vm.supervisor.core.pool.stock import Stock
from claude_vm.supervisor.core.views import MemoryView, PoolView


class Supply:
    """The pool: what it has, what it shall have, and what follows from that."""

    def __init__(self, policy: PoolPolicy, agenda: Agenda) -> None:
        self._stock = Stock(policy)
        self._agenda = agenda
        self._refills = Refills(self._stock, agenda)
        self._generations = Generations()

    # What there is.

    @property
    def policy(self) -> PoolPolicy:
        """The policy that is obeyed now."""
        return self._stock.policy

    @property
    def memory(self) -> MemoryView:
        """What the unclaimed instances take, and what the host has left."""
        return MemoryView(self._stock.memory.used_mib, self._stock.memory.available_mib)

    def takes_mib(self, key: PoolKey) -> int | None:
        """Return what was measured of a key's kind, with the margin, in MiB; None if nothing was yet."""
        memory, kind = self._stock.memory, key.kind
        return memory.takes_mib(kind) if memory.is_measured(kind) else None

    def furthest(self, key: PoolKey) -> str:
        """Return the unclaimed instance that a session gets, a ready one before the others; "" if none."""
        shelf = self._stock.find(key)
        return "" if shelf is None else shelf.furthest()

    def least_missed(self) -> tuple[str, PoolKey] | None:
        """Return the unclaimed instance that gives way to a session, with its key."""
        return self._stock.least_missed()

    def burden(self, *, staying: int) -> tuple[str, PoolKey, str] | None:
        """Return an unclaimed instance that there is no place or no memory for any more, its key, and why.

        `staying` counts the instances that take up places and whose end is not decided.
        """
        policy = self._stock.policy
        if staying > policy.max_instances:
            why = "there are fewer places"
        elif self._stock.memory.excess_mib(policy) > 0:
            why = "the memory is short"
        else:
            return None
        found = self._stock.least_missed()
        return None if found is None else (*found, why)

    # Wishes.

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
            shelf = self._stock.shelf(current)
            shelf.request(at, self._stock.policy)
            self._want(shelf, at, at)

    def fill(self, key: PoolKey, size: int | None, at: float) -> None:
        """Somebody wants so many warm instances of a key, now."""
        current = self._generations.current(key)
        if current is not None:
            shelf = self._stock.shelf(current)
            shelf.fill(size, at)
            self._want(shelf, at, at)

    def forget(self, key: PoolKey) -> list[str]:
        """Nobody wants a key any more: return the instances to give up."""
        shelf = self._stock.find(key)
        return [] if shelf is None else self._forget(shelf)

    def forget_all(self) -> list[str]:
        """Nobody wants any key any more: return the instances to give up."""
        return [name for shelf in self._stock.by_use() for name in self._forget(shelf)]

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

        Wishes for other `sizes` (processors, MiB, GiB) than the new one's end, where those are known.
        """
        self._generations.hear(driver, template, generation)
        gone = []
        for shelf in self._stock.of_template(driver, template):
            if shelf.key.generation == generation:
                continue
            wanted, filled_to = shelf.wanted, shelf.filled_to
            used_at = at if shelf.claimed else shelf.recency
            gone += self._forget(shelf)
            current = self._generations.current(shelf.key)
            if wanted and current is not None and sizes in {None, current.sizes}:
                heir = self._stock.shelf(current)
                heir.inherit(filled_to)
                heir.postpone(at, self._stock.policy)
                self._want(heir, max(used_at, heir.recency), at)
        return gone

    def change_policy(self, policy: PoolPolicy, at: float) -> list[str]:
        """The settings are different: return the instances to give up, whether there is room or not."""
        self._stock.policy = policy
        gone: dict[str, None] = {}
        for shelf in self._stock.by_use():
            surplus = shelf.surplus(policy) if any(shelf.targets(policy)) else self._forget(shelf)
            gone.update(dict.fromkeys(surplus))
            if shelf.wanted:
                self._agenda.set(Idle(shelf.key), max(at, shelf.recency + policy.idle_timeout_s))
            for name, made_at in shelf.unclaimed():
                self._agenda.set(Aged(name), max(at, made_at + policy.max_age_s))
            shelf.grant(policy)
            self._refills.consider(shelf, at, anew=True)
        return list(gone)

    def measure(self, taken: Iterable[tuple[PoolKey, int]], available_mib: int | None, at: float) -> None:
        """Somebody has looked at the memory."""
        memory = self._stock.memory
        for key, taken_mib in taken:
            memory.measure(key.kind, taken_mib)
        if available_mib is not None:
            memory.hear(available_mib)
        self._refills.consider_starved(at)

    def due(self, what: Idle | Refill, at: float) -> list[str]:
        """An instant that was asked for has come: return the instances to give up."""
        shelf = self._stock.shelf(what.key)
        if isinstance(what, Refill):
            self._refills.consider(shelf, at)
            return []
        since = at if shelf.claimed else shelf.recency
        until = since + self._stock.policy.idle_timeout_s
        if until > at:
            self._agenda.set(what, until)
            return []
        return self._forget(shelf)

    # What happens to instances.

    def lease(self, key: PoolKey, at: float) -> None:
        """A session has an instance of a key that was made for it."""
        shelf = self._stock.shelf(key)
        shelf.lease(at, self._stock.policy)
        self._refills.consider(shelf, at)

    def claim(self, instance_id: str, key: PoolKey, at: float, *, was_ready: bool) -> None:
        """A session takes an unclaimed instance."""
        self.lose(instance_id, key, at)
        if was_ready:  # else nobody knows yet whether it comes to anything
            self._stock.shelf(key).clear_failures()
        self.lease(key, at)

    def release(self, key: PoolKey, at: float) -> None:
        """A session has its instance no longer; that was a use until now."""
        shelf = self._stock.shelf(key)
        shelf.release(at, self._stock.policy)
        self._stock.rank(shelf)
        self._refills.consider(shelf, at, anew=True)

    def adopt(self, event: WarmFound, *, places: int) -> bool:
        """Tell whether a found instance has a place; if so, its key is wanted and it is expected."""
        key, at, policy = event.key, event.at, self._stock.policy
        if not (
            policy.size
            and self._generations.current(key) == key
            and at < event.made_at + policy.max_age_s
            and self._refills.has_room(key.kind, places=places)
        ):
            return False
        shelf = self._stock.shelf(key)
        self._expect(event.instance_id, shelf, made_at=event.made_at, paused=False)
        self._want(shelf, at, at)
        return True

    def answer(self, event: WarmRequested, *, places: int) -> bool:
        """Take the answer to a request; tell whether the instance is to be made and is expected now."""
        key, at = event.key, event.at
        if event.available_mib is not None:
            self._stock.memory.hear(event.available_mib)
        shelf = self._stock.find(key)
        if shelf is None or not shelf.asked:
            return False
        self._refills.take_answer(shelf)
        granted = shelf.lack(self._stock.policy) is event.paused and self._refills.has_room(
            key.kind, places=places
        )
        if granted:
            self._expect(event.instance_id, shelf, made_at=at, paused=event.paused)
        self._refills.consider(shelf, at)
        return granted

    def offer(self, instance_id: str, key: PoolKey, at: float) -> None:
        """An expected instance is warm or paused now."""
        shelf = self._stock.shelf(key)
        self._stock.offer(instance_id, shelf, at)
        self._refills.consider(shelf, at)
        self._refills.consider_starved(at)  # what is still being made gives way to nobody; now it may

    def lose(self, instance_id: str, key: PoolKey, at: float) -> None:
        """An instance is unclaimed no longer: it is claimed, or given up, or has failed."""
        shelf = self._stock.shelf(key)
        self._agenda.cancel(Aged(instance_id))
        self._stock.take_out(instance_id, shelf)
        self._refills.consider(shelf, at)

    def give_way(self, key: PoolKey, why: str) -> None:
        """An instance of a key is about to be given up for something else."""
        self._stock.shelf(key).give_way(why)

    def fail(self, key: PoolKey, error: str, at: float) -> None:
        """An unclaimed instance came to nothing, and will be lost: the next one has to wait."""
        self._stock.shelf(key).fail(error, at)

    # What is to be done.

    @property
    def is_short(self) -> bool:
        """Whether a key may have one more instance as soon as there is room."""
        return self._refills.is_short

    def next_step(
        self, *, places: int, leaving: int, awaited: bool, at: float
    ) -> RequestWarm | Displace | None:
        """Return what to do next for the wishes; see `Refills.next_step`."""
        return self._refills.next_step(places=places, leaving=leaving, awaited=awaited, at=at)

    def views(self) -> list[PoolView]:
        """Return what may be seen of each shelf, least recently used first."""
        return [
            PoolView(
                key=shelf.key,
                wanted=shelf.targets(self._stock.policy)[0] if shelf.wanted else 0,
                warm=len(shelf.warm),
                making=len(shelf.making) + shelf.asked,
                paused=len(shelf.paused),
                claimed=shelf.claimed,
                last_used_at=shelf.last_used_at,
                failures=shelf.failures,
                last_error=shelf.last_error or self._never_fits(shelf),
                next_try_at=self._agenda.at(Refill(shelf.key)),
                takes_mib=self._stock.memory.takes_mib(shelf.kind),
                is_measured=self._stock.memory.is_measured(shelf.kind),
                gave_way=shelf.gave_way,
            )
            for shelf in self._stock.by_use()
        ]

    # What must hold.

    def unclaimed(self) -> dict[str, tuple[PoolKey, InstanceState | None]]:
        """Return all unclaimed instances, each with its key and, if it is ready, its state."""
        found: dict[str, tuple[PoolKey, InstanceState | None]] = {}
        for shelf in self._stock.by_use():
            found |= dict.fromkeys(shelf.making, (shelf.key, None))
            found |= dict.fromkeys(shelf.paused, (shelf.key, InstanceState.PAUSED))
            found |= dict.fromkeys(shelf.warm, (shelf.key, InstanceState.WARM))
        return found

    def claimed(self) -> dict[PoolKey, int]:
        """Return how many instances sessions have, by key."""
        return {shelf.key: shelf.claimed for shelf in self._stock.by_use() if shelf.claimed}

    def dues(self) -> set[Aged | Idle | Refill]:
        """Return what is due for the supply's sake."""
        shelves = self._stock.by_use()
        aged = {Aged(name) for shelf in shelves for name, _ in shelf.unclaimed()}
        idle = {Idle(shelf.key) for shelf in shelves if shelf.wanted}
        waiting = {Refill(shelf.key) for shelf in shelves if self._agenda.at(Refill(shelf.key)) is not None}
        return aged | idle | waiting

    def invariants(self) -> Invariants:
        """Yield what must hold of the pool by itself."""
        yield from self._stock.invariants()
        yield from self._refills.invariants()
        for shelf in self._stock.by_use():
            current = self._generations.current(shelf.key) == shelf.key
            yield Invariant(shelf.key, "what is wanted is of today", current or not shelf.wanted)

    # Beneath.

    def _want(self, shelf: Shelf, used_at: float, at: float) -> None:
        shelf.use(used_at, self._stock.policy)
        self._stock.rank(shelf)
        if any(shelf.targets(self._stock.policy)) and not shelf.wanted:
            shelf.want()
            self._agenda.set(Idle(shelf.key), used_at + self._stock.policy.idle_timeout_s)
        self._refills.consider(shelf, at, anew=True)  # a later use may displace others

    def _forget(self, shelf: Shelf) -> list[str]:
        shelf.forget()
        self._agenda.cancel(Idle(shelf.key))
        self._refills.leave(shelf.key)
        unclaimed = [name for name, _ in shelf.unclaimed()]
        self._stock.tidy(shelf)
        return unclaimed

    def _expect(self, instance_id: str, shelf: Shelf, *, made_at: float, paused: bool) -> None:
        self._stock.expect(instance_id, shelf, made_at=made_at, paused=paused)
        self._agenda.set(Aged(instance_id), made_at + self._stock.policy.max_age_s)

    def _never_fits(self, shelf: Shelf) -> str:
        budget, takes_mib = self._stock.policy.memory_budget_mib, self._stock.memory.takes_mib(shelf.kind)
        if not shelf.wanted or budget is None or takes_mib <= budget:
            return ""
        return f"memory-budget: {takes_mib} MiB are needed, {budget} MiB are the whole budget"
