"""When the pool makes one more instance, and of which key.

A wanted key whose shelf has less than the policy says lacks something. From then on it goes through these
stations, one at a time:

    waiting      its instant (`Shelf.not_before`: the delay after a claim, a back-off) has not come yet
    in line      it may have an instance as soon as there is a place and no session waits; first come, first
                 served, because places are the same for all
    starved      it does not fit into the memory budget; the smallest one comes first, so that whatever fits
                 is found without a look at the others
    asked, made  one instance is on its way; only when it has come or failed, or a session has claimed it, the
                 next one is thought of

Keys compete for memory by their last use: for one that was used later, warm or paused instances of others are
given up, those used longest ago first, if all of them together make enough room. So the memory is with those
who work. And a key's own paused
instance gives way to a warm one that it lacks, be it for its memory or for its place.
"""

from collections import OrderedDict

import msgspec

from claude_vm.supervisor.core.deadlines import Ranking
from claude_vm.supervisor.core.due import Agenda, Refill
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.core.pool import Pool
from claude_vm.supervisor.core.shelf import Shelf

MAX_MAKING = 2
"""Unclaimed instances that are made at the same time, of all keys together. One key has one."""


MOST_DELAYS = 4
"""So many delays after a claim are the longest that further claims hold a refill up."""


class Ask(msgspec.Struct, frozen=True):
    """One more instance of this key is to be made."""

    key: PoolKey
    paused: bool


class Displace(msgspec.Struct, frozen=True):
    """This instance is to be given up for the sake of another key, or of a warm one of its own."""

    instance_id: str


class Refills:
    """The stations of all keys that lack something."""

    def __init__(self, pool: Pool, agenda: Agenda) -> None:
        self._pool = pool
        self._agenda = agenda
        self._in_line: OrderedDict[PoolKey, None] = OrderedDict()
        self._starved: Ranking[PoolKey] = Ranking()
        self._asked = 0
        self._asked_mib = 0

    @property
    def free_mib(self) -> float:
        """What the budget leaves for further unclaimed instances; below 0 if it has shrunk."""
        budget = self._pool.policy.memory_budget_mib
        return float("inf") if budget is None else budget - self._pool.memory_mib - self._asked_mib

    def has_room(self, key: PoolKey, *, places: int) -> bool:
        """Tell whether one more unclaimed instance of a key may be there; `places` are free for instances."""
        return places > self._asked and key.memory_mib <= self.free_mib

    def postpone(self, shelf: Shelf, at: float) -> None:
        """Let the next instance wait for the delay after a claim, and after the next, but not for ever."""
        if shelf.postponed_at is None:
            shelf.postponed_at = at
        delay_s = self._pool.policy.refill_delay_s
        latest = shelf.postponed_at + MOST_DELAYS * delay_s
        shelf.not_before = max(shelf.not_before, min(at + delay_s, latest))

    def consider(self, shelf: Shelf, at: float, *, anew: bool = False) -> None:
        """Bring a shelf to the station where it belongs. `anew`: what starved may have a chance now."""
        key = shelf.key
        if anew:
            self._starved.discard(key)
        if shelf.lack(self._pool.policy) is None:
            shelf.postponed_at = None
            self.leave(key)
            self._pool.tidy(shelf)
        elif shelf.not_before > at:
            if self._agenda.at(Refill(key)) != shelf.not_before:
                self.leave(key)
                self._agenda.set(Refill(key), shelf.not_before)
        elif key not in self._starved:
            self._agenda.cancel(Refill(key))
            self._in_line[key] = None

    def leave(self, key: PoolKey) -> None:
        """Take a key from whichever station it is at."""
        self._agenda.cancel(Refill(key))
        self._in_line.pop(key, None)
        self._starved.discard(key)

    def next_step(self, *, places: int, leaving: int) -> Ask | Displace | None:
        """Return what to do next; None: nothing until something happens.

        `places` is how many more instances there may be, `leaving` how many are on their way out, each of
        which leaves a place. An `Ask` counts as an instance, until its answer. Sessions come first: whoever
        waits was served before, as far as there were places.
        """
        if self._asked + self._pool.making >= MAX_MAKING:
            return None
        if places <= self._asked:
            return self._exchange() if places + leaving == self._asked else None
        while (shelf := self._next_shelf()) is not None:
            key, free_mib = shelf.key, self.free_mib
            if key.memory_mib <= free_mib:
                paused = shelf.lack(self._pool.policy) is True
                shelf.asked = True
                shelf.postponed_at = None
                self._asked += 1
                self._asked_mib += key.memory_mib
                self.leave(key)
                return Ask(key, paused)
            other = self._pool.least_used()
            if (
                other is not None
                and other.recency < shelf.recency
                and key.memory_mib <= free_mib + self._pool.displaceable_mib(shelf.recency)
            ):
                return Displace(other.least_ready())
            if (own := self._own_paused(shelf)) is not None:
                return own
            del self._in_line[key]
            self._starved.put(key, key.memory_mib)
        return None

    def _exchange(self) -> Displace | None:
        """Return the paused instance whose place the next in line needs for a warm one, if it has one."""
        if self._pool.is_awaited:  # a session would have the place
            return None
        shelf = self._next_shelf()
        return None if shelf is None else self._own_paused(shelf)

    def _own_paused(self, shelf: Shelf) -> Displace | None:
        """Return the paused instance that gives way to a warm one of its own key."""
        if not shelf.paused or shelf.lack(self._pool.policy) is not False or self.free_mib < 0:
            return None
        return Displace(next(iter(shelf.paused)))

    def take_answer(self, shelf: Shelf) -> None:
        """An `Ask` has been answered."""
        shelf.asked = False
        self._asked -= 1
        self._asked_mib -= shelf.key.memory_mib

    def _next_shelf(self) -> Shelf | None:
        """Return who is next: a starved one that fits now, else the first in line."""
        smallest = self._starved.first()
        if smallest is not None and smallest[0] <= self.free_mib:
            return self._pool.shelf(smallest[1])
        return self._pool.shelf(next(iter(self._in_line))) if self._in_line else None
