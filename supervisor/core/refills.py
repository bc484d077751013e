"""When the pool makes one more instance, and of which key.

A wanted key whose shelf has less than the policy says lacks something. From then on it goes through these
stations, one at a time:

    waiting      its instant (`Shelf.not_before`: the delay after a claim, a back-off) has not come yet;
                 unless the last one failed, the memory for it is kept from what is of a lower rank
    in line      it may have an instance as soon as there is a place and no session waits: those first for
                 which others may give way, a warm one before a paused one, the key that was used last first
    starved      it does not fit into the memory that there is; as soon as it does, it is in line again
    asked, made  one instance is on its way; only when it has come or failed, or a session has claimed it, the
                 next one is thought of

Keys compete for places and for memory in the same way: what is ready and of a lower rank (see `pool`) gives
way, the lowest first, if all of it together makes enough room. So the room is with those who work. There is
no storm: what gave way has a lower rank than what came, until its key is used again, and each use lets others
give way for as many instances as it asks for, however often those fail.
"""

import msgspec

from claude_vm.supervisor.core.deadlines import Ranking
from claude_vm.supervisor.core.due import Agenda, Refill
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.core.pool import Pool, Worth
from claude_vm.supervisor.core.shelf import Shelf

MAX_MAKING = 2
"""Unclaimed instances that are made at the same time, of all keys together. One key has one."""

PATIENCE_S = 30.0
"""So long after a session's request nobody gives a place up for the next one: mostly its own comes back."""

MOST_DELAYS = 4
"""So many delays after a claim are the longest that further claims hold a refill up."""


class Ask(msgspec.Struct, frozen=True):
    """One more instance of this key is to be made."""

    key: PoolKey
    paused: bool


class Displace(msgspec.Struct, frozen=True):
    """This instance is to be given up for the sake of one that is of a higher rank."""

    instance_id: str


class Refills:
    """The stations of all keys that lack something."""

    def __init__(self, pool: Pool, agenda: Agenda) -> None:
        self._pool = pool
        self._agenda = agenda
        self._in_line: Ranking[PoolKey, tuple[bool, bool, float]] = Ranking()
        self._starved: Ranking[PoolKey, float] = Ranking()
        self._waiting: dict[PoolKey, Shelf] = {}
        self._asked: dict[PoolKey, int] = {}  # with the MiB that each will take

    @property
    def room_mib(self) -> float:
        """The memory that is left for further unclaimed instances; below 0 if it has shrunk."""
        return self._pool.memory.room_mib(self._pool.policy) - sum(self._asked.values())

    def has_room(self, kind: PoolKey, *, places: int) -> bool:
        """Tell whether one more unclaimed instance of a kind may be there; so many `places` are free."""
        return places > len(self._asked) and self._pool.memory.takes_mib(kind) <= self.room_mib

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
        paused = shelf.lack(self._pool.policy)
        if paused is None:
            shelf.postponed_at = None
            self.leave(key)
            self._pool.tidy(shelf)
        elif shelf.not_before > at:
            if self._agenda.at(Refill(key)) != shelf.not_before:
                self.leave(key)
                self._agenda.set(Refill(key), shelf.not_before)
            if not shelf.failures:
                self._waiting[key] = shelf
        elif key not in self._starved:
            self._stop_waiting(key)
            rank = not shelf.credit, paused, -shelf.recency
            if self._in_line.rank(key) != rank:
                self._in_line.put(key, rank)

    def consider_starved(self, at: float) -> None:
        """Give all that starves another chance: perhaps the memory or the ranks are different now."""
        for key in list(self._starved):
            self.consider(self._pool.shelf(key), at, anew=True)

    def leave(self, key: PoolKey) -> None:
        """Take a key from whichever station it is at."""
        self._stop_waiting(key)
        self._in_line.discard(key)
        self._starved.discard(key)

    def next_step(self, *, places: int, leaving: int, at: float) -> Ask | Displace | None:
        """Return what to do next; None: nothing until something happens.

        `places` is how many more instances there may be, `leaving` how many are on their way out, each of
        which leaves a place. An `Ask` counts as an instance, until its answer. Sessions come first: whoever
        waits was served before, as far as there were places.
        """
        if not (self._in_line or self._starved) or len(self._asked) + self._pool.making >= MAX_MAKING:
            return None
        lacks_place = places <= len(self._asked)
        if lacks_place and (self._pool.is_awaited or places + leaving > len(self._asked)):
            return None  # a session would have the place, or one comes free by itself
        self._call_back()
        while (first := self._in_line.first()) is not None:
            (no_credit, paused, _), key = first
            shelf = self._pool.shelf(key)
            worth = not paused, shelf.recency
            takes_mib = self._pool.memory.takes_mib(shelf.kind)
            room_mib = self.room_mib - self._kept_mib(worth)
            if not lacks_place and takes_mib <= room_mib:
                return self._ask(shelf, takes_mib, paused=paused)
            found = None
            if not no_credit and not (lacks_place and at < shelf.patient_until):
                found = self._displace(shelf, worth, takes_mib - room_mib)
            if found is not None or takes_mib <= room_mib:
                return found  # if it is None: for whoever stands behind it, there is no place either
            self._in_line.discard(key)
            self._starved.put(key, takes_mib)
        return None

    def _displace(self, shelf: Shelf, worth: Worth, lacking_mib: float) -> Displace | None:
        """Return what gives way first to one more of a shelf, if all of a lower rank makes enough room."""
        if shelf.claimed and not self._pool.memory.is_measured(shelf.kind):
            return None  # what its session's VM takes will be known in a moment, and is mostly much less
        other = self._pool.lowest(below=worth)
        if other is None or lacking_mib > self._pool.displaceable_mib(worth):
            return None
        shelf.displaces = True
        return Displace(other[0])

    def _kept_mib(self, below: Worth) -> int:
        """Return the memory that is kept for those who wait, from whoever has a lower rank."""
        policy, takes_mib = self._pool.policy, self._pool.memory.takes_mib
        return sum(
            takes_mib(shelf.kind)
            for shelf in self._waiting.values()
            if (shelf.lack(policy) is False, shelf.recency) > below
        )

    def _stop_waiting(self, key: PoolKey) -> None:
        self._agenda.cancel(Refill(key))
        self._waiting.pop(key, None)

    def _call_back(self) -> None:
        """Let those stand in line again that starved and fit now."""
        room_mib = self.room_mib
        while (smallest := self._starved.first()) is not None and smallest[0] <= room_mib:
            self._starved.discard(smallest[1])
            shelf = self._pool.shelf(smallest[1])
            paused = bool(shelf.lack(self._pool.policy))
            self._in_line.put(shelf.key, (not shelf.credit, paused, -shelf.recency))

    def _ask(self, shelf: Shelf, takes_mib: int, *, paused: bool) -> Ask:
        shelf.asked = True
        shelf.postponed_at = None
        shelf.credit -= shelf.displaces
        shelf.displaces = False
        self._asked[shelf.key] = takes_mib
        self.leave(shelf.key)
        return Ask(shelf.key, paused)

    def take_answer(self, shelf: Shelf) -> None:
        """An `Ask` has been answered."""
        shelf.asked = False
        del self._asked[shelf.key]
