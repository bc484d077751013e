"""When the pool makes one more instance, and of which key.

A wanted key whose pool has less than the policy says lacks something. From then on it goes through these
stations, one at a time:

    waiting      its instant (`KeyPool.not_before`: the delay after a claim, a back-off) has not come yet;
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

from typing import NamedTuple

from claude_vm.supervisor.core.deadlines import Ranking
from claude_vm.supervisor.core.due import Agenda, Refill
from claude_vm.supervisor.core.effects import RequestWarm
from claude_vm.supervisor.core.invariants import Invariant, Invariants
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.core.pool.key_pool import KeyPool
from claude_vm.supervisor.core.pool.pools import Pools, Worth

MAX_MAKING = 2
"""Unclaimed instances that are made at the same time, of all keys together. One key has one."""


class Displace(NamedTuple):
    """This instance, of this key, is to be given up for the sake of one that is of a higher rank."""

    instance_id: str
    key: PoolKey


class Refills:
    """The stations of all keys that lack something."""

    def __init__(self, pools: Pools, agenda: Agenda) -> None:
        self._pools = pools
        self._agenda = agenda
        self._in_line: Ranking[PoolKey, tuple[bool, bool, float]] = Ranking()
        self._starved: Ranking[PoolKey, float] = Ranking()
        self._waiting: dict[PoolKey, KeyPool] = {}
        self._asked: dict[PoolKey, int] = {}  # with the MiB that each will take

    @property
    def is_short(self) -> bool:
        """Whether a key is in line, or starves."""
        return bool(self._in_line) or bool(self._starved)

    @property
    def room_mib(self) -> float:
        """The memory that is left for further unclaimed instances; below 0 if it has shrunk."""
        return self._pools.memory.room_mib(self._pools.policy) - sum(self._asked.values())

    def has_room(self, kind: PoolKey, *, capacity: int) -> bool:
        """Tell whether one more unclaimed instance of a kind may be there; so many `capacity` are free."""
        return capacity > len(self._asked) and self._pools.memory.takes_mib(kind) <= self.room_mib

    def consider(self, pool: KeyPool, at: float, *, anew: bool = False) -> None:
        """Bring a pool to the station where it belongs. `anew`: what starved may have a chance now."""
        key = pool.key
        if anew:
            self._starved.discard(key)
        paused = pool.lack(self._pools.policy)
        if paused is None:
            pool.postponed_at = None  # the next claim is the first again that it waits for
            self.leave(key)
            self._pools.tidy(pool)
        elif pool.not_before > at:
            if self._agenda.at(Refill(key)) != pool.not_before:
                self.leave(key)
                self._agenda.set(Refill(key), pool.not_before)
            if not pool.failures:
                self._waiting[key] = pool
        elif key not in self._starved:
            self._stop_waiting(key)
            rank = _rank(pool, paused=paused)
            if self._in_line.rank(key) != rank:
                self._in_line.put(key, rank)

    def consider_starved(self, at: float) -> None:
        """Give all that starves another chance: perhaps the memory or the ranks are different now."""
        for key in list(self._starved):
            self.consider(self._pools.pool(key), at, anew=True)

    def leave(self, key: PoolKey) -> None:
        """Take a key from whichever station it is at."""
        self._stop_waiting(key)
        self._in_line.discard(key)
        self._starved.discard(key)

    def next_step(
        self, *, capacity: int, leaving: int, awaited: bool, at: float
    ) -> RequestWarm | Displace | None:
        """Return what to do next; None: nothing until something happens.

        `capacity` is how many more instances there may be, `leaving` how many are on their way out, each of
        which leaves a place. A request counts as an instance, until its answer. Sessions come first: whoever
        waits (`awaited`) was served before, as far as there were places.
        """
        if len(self._asked) + self._pools.making >= MAX_MAKING:
            return None
        lacks_capacity = capacity <= len(self._asked)
        if lacks_capacity and (awaited or capacity + leaving > len(self._asked)):
            return None  # a session would have the place, or one comes free by itself
        self._call_back()
        while (first := self._in_line.first()) is not None:
            (no_credit, paused, _), key = first
            pool = self._pools.pool(key)
            worth = not paused, pool.recency
            takes_mib = self._pools.memory.takes_mib(pool.kind)
            room_mib = self.room_mib - self._kept_mib(worth)
            if not lacks_capacity and takes_mib <= room_mib:
                return self._ask(pool, takes_mib, paused=paused)
            found = None
            if not no_credit and not (lacks_capacity and at < pool.patient_until):
                found = self._displace(pool, worth, takes_mib - room_mib)
            if found is not None or takes_mib <= room_mib:
                return found  # if it is None: for whoever stands behind it, there is no place either
            self._in_line.discard(key)
            self._starved.put(key, takes_mib)
        return None

    def _displace(self, pool: KeyPool, worth: Worth, lacking_mib: float) -> Displace | None:
        """Return what gives way first to one more of a pool, if all of a lower rank makes enough room."""
        if pool.claimed and not self._pools.memory.is_measured(pool.kind):
            return None  # what its session's VM takes will be known in a moment, and is mostly much less
        other = self._pools.lowest(below=worth)
        if other is None or lacking_mib > self._pools.displaceable_mib(worth):
            return None
        pool.displaces = True
        return Displace(*other)

    def _kept_mib(self, below: Worth) -> int:
        """Return the memory that is kept for those who wait, from whoever has a lower rank."""
        policy, takes_mib = self._pools.policy, self._pools.memory.takes_mib
        return sum(
            takes_mib(pool.kind)
            for pool in self._waiting.values()
            if (pool.lack(policy) is False, pool.recency) > below
        )

    def _stop_waiting(self, key: PoolKey) -> None:
        self._agenda.discard(Refill(key))
        self._waiting.pop(key, None)

    def _call_back(self) -> None:
        """Let those stand in line again that starved and fit now."""
        room_mib = self.room_mib
        while (smallest := self._starved.first()) is not None and smallest[0] <= room_mib:
            self._starved.discard(smallest[1])
            pool = self._pools.pool(smallest[1])
            paused = bool(pool.lack(self._pools.policy))
            self._in_line.put(pool.key, _rank(pool, paused=paused))

    def _ask(self, pool: KeyPool, takes_mib: int, *, paused: bool) -> RequestWarm:
        pool.ask()
        self._asked[pool.key] = takes_mib
        self.leave(pool.key)
        return RequestWarm(key=pool.key, paused=paused)

    def take_answer(self, pool: KeyPool) -> None:
        """A request has been answered."""
        pool.asked = False
        del self._asked[pool.key]

    def invariants(self) -> Invariants:
        """Yield what must hold of the stations."""
        asked, pools = set(), self._pools.by_use()
        for pool in pools:
            key = name = pool.key
            waits = self._agenda.at(Refill(key))
            stations = (waits is not None) + (key in self._in_line) + (key in self._starved)
            lacks = pool.lack(self._pools.policy)
            yield Invariant(name, "what lacks something is at one station", stations == (lacks is not None))
            yield Invariant(name, "it waits until its instant", waits in {None, pool.not_before})
            rank = self._in_line.rank(key)
            yield Invariant(
                name, "it stands where it belongs", rank in {None, _rank(pool, paused=bool(lacks))}
            )
            yield Invariant(name, "room is kept for who waits", key not in self._waiting or waits is not None)
            if pool.asked:
                asked.add(key)
        yield Invariant("refills", "what is asked for is known", asked == self._asked.keys())
        known = {pool.key for pool in pools}
        stations_of = {*self._in_line, *self._starved, *self._waiting}
        yield Invariant("refills", "nothing else is at a station", stations_of <= known)


def _rank(pool: KeyPool, *, paused: bool) -> tuple[bool, bool, float]:
    """Return where a pool stands in line: the lowest goes first."""
    return not pool.credit, paused, -pool.recency
