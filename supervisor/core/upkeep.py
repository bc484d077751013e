"""What the pool shall have: which keys are wanted, and what is given up.

A key is wanted from its first use until `idle_timeout_s` after its last one. What a wanted key lacks is the
business of `refills`.

Whoever calls gives up the instances that are named in the answers; the shelves follow when they are told
(`lose`). No operation costs more because there are more instances, but for those that are about all of
them: `forget_all`, and changes of the policy or of a template.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from claude_vm.supervisor.core.due import Aged, Agenda, Idle, Refill
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.core.policy import PoolPolicy
from claude_vm.supervisor.core.pool import Pool
from claude_vm.supervisor.core.refills import PATIENCE_S, Ask, Displace, Refills
from claude_vm.supervisor.core.retries import MAX_DELAY_S, delay_s
from claude_vm.supervisor.core.shelf import Shelf
from claude_vm.supervisor.core.views import PoolView

KEPT_GENERATIONS = 128
"""Templates whose generation is remembered, those last heard of. Of others, any news is believed."""


class _Generation(NamedTuple):
    """A template's last generation that was heard of, and whether it has been deleted since."""

    name: str
    is_gone: bool = False


class Upkeep:
    """The wishes for a pool's keys, and what follows from them."""

    def __init__(self, pool: Pool, agenda: Agenda) -> None:
        self._pool = pool
        self._agenda = agenda
        self._refills = Refills(pool, agenda)
        self._generations: OrderedDict[tuple[str, str], _Generation] = OrderedDict()

    # Wishes.

    def notice(self, key: PoolKey, at: float) -> list[str]:
        """Somebody has read a key from disk: return what to give up if that is a later generation.

        Other supervisors of the same home build templates too, and tell nobody.
        """
        name = key.driver, key.template
        known = self._generations.get(name)
        if known is not None and key.generation <= known.name:
            self._generations.move_to_end(name)
            return []
        return self.change_template(key.driver, key.template, key.generation, at)

    def want(self, key: PoolKey, at: float) -> None:
        """A session asks for an instance of a key; from now on the pool wants the key."""
        current = self._current(key)
        if current is not None:
            shelf = self._pool.shelf(current)
            self._refills.postpone(shelf, at)
            shelf.patient_until = at + PATIENCE_S
            self._want(shelf, at, at)

    def fill(self, key: PoolKey, size: int | None, at: float) -> None:
        """Somebody wants so many warm instances of a key, now."""
        current = self._current(key)
        if current is not None:
            shelf = self._pool.shelf(current)
            shelf.clear_failures()
            shelf.not_before = shelf.patient_until = at
            shelf.filled_to = None if size is None else max(size, 0)
            self._want(shelf, at, at)

    def forget(self, key: PoolKey) -> list[str]:
        """Nobody wants a key any more: return the instances to give up."""
        shelf = self._pool.find(key)
        return [] if shelf is None else self._forget(shelf)

    def forget_all(self) -> list[str]:
        """Nobody wants any key any more: return the instances to give up."""
        return [name for shelf in self._pool.shelves() for name in self._forget(shelf)]

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
        known = self._generations.pop((driver, template), _Generation(""))
        self._generations[driver, template] = _Generation(generation or known.name, is_gone=not generation)
        if len(self._generations) > KEPT_GENERATIONS:
            self._generations.popitem(last=False)
        gone = []
        for shelf in self._pool.shelves_of(driver, template):
            if shelf.key.generation == generation:
                continue
            wanted, filled_to = shelf.wanted, shelf.filled_to
            used_at = at if shelf.claimed else shelf.recency
            gone += self._forget(shelf)
            current = self._current(shelf.key)
            if wanted and current is not None and sizes in {None, current.sizes}:
                heir = self._pool.shelf(current)
                heir.filled_to = filled_to if heir.filled_to is None else heir.filled_to
                self._refills.postpone(heir, at)
                self._want(heir, max(used_at, heir.recency), at)
        return gone

    def change_policy(self, policy: PoolPolicy, at: float) -> list[str]:
        """The settings are different: return the instances to give up, whether there is room or not."""
        self._pool.policy = policy
        gone: dict[str, None] = {}
        for shelf in sorted(self._pool.shelves(), key=lambda shelf: shelf.recency):
            surplus = shelf.surplus(policy) if any(shelf.targets(self._pool.policy)) else self._forget(shelf)
            gone.update(dict.fromkeys(surplus))
            if shelf.wanted:
                self._agenda.set(Idle(shelf.key), max(at, shelf.recency + policy.idle_timeout_s))
            for unclaimed in (shelf.making, shelf.paused, shelf.warm):
                for name, made_at in unclaimed.items():
                    self._agenda.set(Aged(name), max(at, made_at + policy.max_age_s))
            shelf.credit = sum(shelf.targets(policy))
            self._refills.consider(shelf, at, anew=True)
        return list(gone)

    def measure(self, taken: Iterable[tuple[PoolKey, int]], available_mib: int | None, at: float) -> None:
        """Somebody has looked at the memory."""
        memory = self._pool.memory
        for key, taken_mib in taken:
            memory.measure(key.kind, taken_mib)
        if available_mib is not None:
            memory.hear(available_mib)
        self._refills.consider_starved(at)

    def due(self, what: Idle | Refill, at: float) -> list[str]:
        """An instant that was asked for has come: return the instances to give up."""
        shelf = self._pool.shelf(what.key)
        if isinstance(what, Refill):
            self._refills.consider(shelf, at)
            return []
        since = at if shelf.claimed else shelf.recency
        until = since + self._pool.policy.idle_timeout_s
        if until > at:
            self._agenda.set(what, until)
            return []
        return self._forget(shelf)

    # What happens to instances.

    def lease(self, key: PoolKey, at: float) -> None:
        """A session has an instance of a key."""
        shelf = self._pool.shelf(key)
        shelf.claimed += 1
        self._refills.postpone(shelf, at)
        self._refills.consider(shelf, at)

    def release(self, key: PoolKey, at: float) -> None:
        """A session has its instance no longer; that was a use until now."""
        shelf = self._pool.shelf(key)
        shelf.claimed -= 1
        shelf.patient_until = at
        self._pool.use(shelf, at)
        self._refills.consider(shelf, at, anew=True)

    def adopt(self, instance_id: str, key: PoolKey, *, made_at: float, at: float, places: int) -> bool:
        """Tell whether a found instance has a place; if so, its key is wanted and it is expected."""
        policy = self._pool.policy
        if not (
            policy.size
            and self._current(key) == key
            and at < made_at + policy.max_age_s
            and self._refills.has_room(key.kind, places=places)
        ):
            return False
        shelf = self._pool.shelf(key)
        self._expect(instance_id, shelf, made_at=made_at, paused=False)
        self._want(shelf, at, at)
        return True

    def answer(self, instance_id: str, key: PoolKey, *, paused: bool, at: float, places: int) -> bool:
        """Take the answer to an `Ask`; tell whether the instance is to be made and is expected now."""
        shelf = self._pool.find(key)
        if shelf is None or not shelf.asked:
            return False
        self._refills.take_answer(shelf)
        granted = shelf.lack(self._pool.policy) is paused and self._refills.has_room(key.kind, places=places)
        if granted:
            self._expect(instance_id, shelf, made_at=at, paused=paused)
        self._refills.consider(shelf, at)
        return granted

    def offer(self, instance_id: str, key: PoolKey, at: float) -> None:
        """An expected instance is warm or paused now."""
        shelf = self._pool.shelf(key)
        shelf.ready_at = at
        shelf.gave_way = ""
        self._pool.offer(instance_id, shelf)
        self._refills.consider(shelf, at)
        self._refills.consider_starved(at)  # what is still being made gives way to nobody; now it may

    def lose(self, instance_id: str, key: PoolKey, at: float) -> None:
        """An instance is unclaimed no longer: it is claimed, or given up, or has failed."""
        shelf = self._pool.shelf(key)
        self._agenda.cancel(Aged(instance_id))
        self._pool.take_out(instance_id, shelf)
        self._refills.consider(shelf, at)

    def note_gave_way(self, key: PoolKey, why: str) -> None:
        """An instance of a key is about to be given up for something else."""
        self._pool.shelf(key).gave_way = why

    def succeed(self, key: PoolKey) -> None:
        """An instance of the pool was of use: what failed before does not count any more."""
        self._pool.shelf(key).clear_failures()

    def fail(self, key: PoolKey, error: str, at: float) -> None:
        """An unclaimed instance came to nothing, and will be lost: the next one has to wait.

        Failures are counted in a row; a row ends when an instance was of use, or was ready for a while.
        """
        shelf = self._pool.shelf(key)
        if shelf.ready_at is not None and at - shelf.ready_at >= MAX_DELAY_S:
            shelf.failures = 0
        shelf.failures += 1
        shelf.last_error = error
        shelf.ready_at = None
        shelf.not_before = max(shelf.not_before, at + delay_s(shelf.failures))

    # What is to be done.

    def next_step(self, *, places: int, leaving: int, at: float) -> Ask | Displace | None:
        """Return what to do next for the wishes; see `Refills.next_step`."""
        return self._refills.next_step(places=places, leaving=leaving, at=at)

    def views(self) -> list[PoolView]:
        """Return what may be seen of each shelf, least recently used first."""
        shelves = sorted(self._pool.shelves(), key=lambda shelf: shelf.recency)
        return [
            PoolView(
                key=shelf.key,
                wanted=shelf.targets(self._pool.policy)[0] if shelf.wanted else 0,
                warm=len(shelf.warm),
                making=len(shelf.making) + shelf.asked,
                paused=len(shelf.paused),
                claimed=shelf.claimed,
                last_used_at=shelf.last_used_at,
                failures=shelf.failures,
                last_error=shelf.last_error or self._never_fits(shelf),
                next_try_at=self._agenda.at(Refill(shelf.key)),
                takes_mib=self._pool.memory.takes_mib(shelf.kind),
                is_measured=self._pool.memory.is_measured(shelf.kind),
                gave_way=shelf.gave_way,
            )
            for shelf in shelves
        ]

    # Beneath.

    def _current(self, key: PoolKey) -> PoolKey | None:
        """Return the key with its template's generation of today, or None if the template is gone."""
        known = self._generations.get((key.driver, key.template))
        if known is None or known == (key.generation, False):
            return key
        return None if known.is_gone else msgspec.structs.replace(key, generation=known.name)

    def _want(self, shelf: Shelf, used_at: float, at: float) -> None:
        self._pool.use(shelf, used_at)
        if any(shelf.targets(self._pool.policy)) and not shelf.wanted:
            shelf.wanted = True
            self._agenda.set(Idle(shelf.key), used_at + self._pool.policy.idle_timeout_s)
        self._refills.consider(shelf, at, anew=True)  # a later use may displace others

    def _forget(self, shelf: Shelf) -> list[str]:
        shelf.wanted = False
        shelf.filled_to = None
        shelf.clear_failures()
        shelf.not_before = 0.0
        self._agenda.cancel(Idle(shelf.key))
        self._refills.leave(shelf.key)
        unclaimed = list(shelf.unclaimed())
        self._pool.tidy(shelf)
        return unclaimed

    def _expect(self, instance_id: str, shelf: Shelf, *, made_at: float, paused: bool) -> None:
        self._pool.expect(instance_id, shelf, made_at=made_at, paused=paused)
        self._agenda.set(Aged(instance_id), made_at + self._pool.policy.max_age_s)

    def _never_fits(self, shelf: Shelf) -> str:
        budget, takes_mib = self._pool.policy.memory_budget_mib, self._pool.memory.takes_mib(shelf.kind)
        if not shelf.wanted or budget is None or takes_mib <= budget:
            return ""
        return f"memory-budget: {takes_mib} MiB are needed, {budget} MiB are the whole budget"
