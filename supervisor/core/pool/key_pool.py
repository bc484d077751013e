"""What there is of one pool key: its unclaimed instances, its sessions' ones, and the demand for more."""

from collections import OrderedDict
from collections.abc import Iterator

import msgspec

from claude_vm.supervisor.core.invariants import Invariant, Invariants
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.core.policy import PoolPolicy
from claude_vm.supervisor.core.retries import MAX_DELAY_S, delay_s

PATIENCE_S = 30.0
"""So long after a session's request nobody gives a place up for the next one: mostly its own comes back."""

MOST_DELAYS = 4
"""So many delays after a claim are the longest that further claims hold a refill up."""


class KeyPool(msgspec.Struct):
    """One key's part of the pool. It changes by its own methods alone, and those are the pool's to call.

    `kind` is the key without its mounts. `wanted` tells that somebody used the key not long ago; `filled_to`
    is the number of warm instances that somebody asked for, None stands for the policy's. `last_used_at` is
    the instant of the last use.

    `warm`, `paused` and `making` are the unclaimed instances, oldest first, with the instant at which the
    making of each began; those that are made will be paused if they are in `to_pause`. `claimed` counts the
    instances that sessions have. `asked` tells that a `RequestWarm` has no answer yet.

    No instance is made before `not_before`. `postponed_at` is the instant of the first claim for whose sake
    the next one waits. `failures` counts those that came to nothing, `last_error` says why the last did;
    `ready_at` is the instant at which, since then, one became warm or paused.

    For a place, nobody gives way to an instance of this key before `patient_until`. `credit` is how many more
    instances may be made, until the next use, for which others give way; so that a use never leads to more
    of that than it asks for. `displaces` tells that some did for the next one. `gave_way` says why the last
    one of its own that gave way did so, until there is another one.
    """

    key: PoolKey
    kind: PoolKey
    wanted: bool = False
    filled_to: int | None = None
    last_used_at: float | None = None
    warm: OrderedDict[str, float] = msgspec.field(default_factory=OrderedDict)
    paused: OrderedDict[str, float] = msgspec.field(default_factory=OrderedDict)
    making: OrderedDict[str, float] = msgspec.field(default_factory=OrderedDict)
    to_pause: set[str] = msgspec.field(default_factory=set)
    claimed: int = 0
    asked: bool = False
    not_before: float = 0.0
    postponed_at: float | None = None
    failures: int = 0
    last_error: str = ""
    ready_at: float | None = None
    patient_until: float = 0.0
    credit: int = 0
    displaces: bool = False
    gave_way: str = ""

    # What it is like.

    @property
    def recency(self) -> float:
        """The last use as a rank: what was used longer ago is lower."""
        return float("-inf") if self.last_used_at is None else self.last_used_at

    @property
    def is_needless(self) -> bool:
        """Whether nothing would be lost without it."""
        return not (self.wanted or self.claimed or self.asked or self.making or self.paused or self.warm)

    def unclaimed(self) -> Iterator[tuple[str, float]]:
        """Yield the unclaimed instances and when their making began, the least valuable first."""
        for instances in (self.making, self.paused, self.warm):
            yield from instances.items()

    def furthest(self) -> str:
        """Return the unclaimed instance that a session gets soonest; "" if there is none.

        Of the unfinished ones, those to be paused come last. They are one at most, so the search is short.
        """
        if ready := self.warm or self.paused:
            return next(iter(ready))
        to_warm = (name for name in self.making if name not in self.to_pause)
        return next(to_warm, None) or next(iter(self.making), "")

    def targets(self, policy: PoolPolicy) -> tuple[int, int]:
        """Return how many warm and how many paused instances there shall be while the key is wanted."""
        warm = policy.size if self.filled_to is None else self.filled_to
        return warm, policy.paused if self.key.driver in policy.prestart_drivers else 0

    def lack(self, policy: PoolPolicy) -> bool | None:
        """Return whether the instance that is to be made next shall be paused; None: none is to be made."""
        if not self.wanted or self.asked or self.making:
            return None
        warm, paused = self.targets(policy)
        if len(self.warm) < warm:
            return False
        return True if len(self.paused) < paused else None

    def surplus(self, policy: PoolPolicy) -> list[str]:
        """Return the unclaimed instances above the targets, those first that have cost least."""
        warm, paused = self.targets(policy)
        to_warm = [name for name in self.making if name not in self.to_pause]
        to_pause = [name for name in self.making if name in self.to_pause]
        too_many = max(0, len(to_warm) + len(self.warm) - warm)
        too_paused = max(0, len(to_pause) + len(self.paused) - paused)
        return [*to_warm, *self.warm][:too_many] + [*to_pause, *self.paused][:too_paused]

    # Demand.

    def use(self, at: float, policy: PoolPolicy) -> None:
        """Note a use: it lets others give way for as much as the key shall have."""
        self.last_used_at = at
        self.grant(policy)

    def grant(self, policy: PoolPolicy) -> None:
        """Let others give way for as much as the key shall have by this policy."""
        self.credit = sum(self.targets(policy))

    def fill(self, size: int | None, at: float) -> None:
        """So many warm instances are wanted at once, whatever failed before."""
        self.clear_failures()
        self.not_before = self.patient_until = at
        self.filled_to = None if size is None else max(size, 0)

    def forget(self) -> None:
        """The key is wanted no more."""
        self.wanted = False
        self.filled_to = None
        self.not_before = 0.0
        self.clear_failures()

    # Sessions.

    def request(self, at: float, policy: PoolPolicy) -> None:
        """A session asks for an instance."""
        self.postpone(at, policy)
        self.patient_until = at + PATIENCE_S

    def lease(self, at: float, policy: PoolPolicy) -> None:
        """A session has got an instance."""
        self.claimed += 1
        self.postpone(at, policy)

    def release(self, at: float, policy: PoolPolicy) -> None:
        """A session has its instance no longer; that was a use until now."""
        self.claimed -= 1
        self.patient_until = at
        self.use(at, policy)

    # The next instance.

    def postpone(self, at: float, policy: PoolPolicy) -> None:
        """Let it wait for the delay after a claim, and after the next, but not for ever."""
        if self.postponed_at is None:
            self.postponed_at = at
        latest = self.postponed_at + MOST_DELAYS * policy.refill_delay_s
        self.not_before = max(self.not_before, min(at + policy.refill_delay_s, latest))

    def ask(self) -> None:
        """It is asked for."""
        self.asked = True
        self.postponed_at = None
        self.credit -= self.displaces
        self.displaces = False

    # Unclaimed instances.

    def expect(self, instance_id: str, *, made_at: float, paused: bool) -> None:
        """One is being made."""
        self.making[instance_id] = made_at
        if paused:
            self.to_pause.add(instance_id)

    def offer(self, instance_id: str, at: float) -> bool:
        """One that was being made is ready; return whether it is warm, and not paused."""
        made_at = self.making.pop(instance_id)
        is_warm = instance_id not in self.to_pause
        self.to_pause.discard(instance_id)
        (self.warm if is_warm else self.paused)[instance_id] = made_at
        self.ready_at = at
        self.gave_way = ""
        return is_warm

    def take_out(self, instance_id: str) -> bool:
        """One is claimed or given up; return whether it was ready."""
        if self.making.pop(instance_id, None) is not None:
            self.to_pause.discard(instance_id)
            return False
        if self.warm.pop(instance_id, None) is None:
            del self.paused[instance_id]
        return True

    def fail(self, error: str, at: float) -> None:
        """One came to nothing: the next one has to wait.

        Failures are counted in a row; a row ends when an instance was of use, or was ready for a while.
        """
        if self.ready_at is not None and at - self.ready_at >= MAX_DELAY_S:
            self.failures = 0
        self.failures += 1
        self.last_error = error
        self.ready_at = None
        self.not_before = max(self.not_before, at + delay_s(self.failures))

    def clear_failures(self) -> None:
        """Let what failed before not count any more."""
        self.failures = 0
        self.last_error = ""
        self.ready_at = None

    # What must hold.

    def invariants(self) -> Invariants:
        """Yield what must hold of the pool by itself."""
        name = self.key
        yield Invariant(name, "something is in the pool, or wanted", not self.is_needless)
        yield Invariant(name, "what will be paused is being made", self.to_pause <= self.making.keys())
        yield Invariant(name, "what is unclaimed is wanted", self.wanted or not any(self.unclaimed()))
        yield Invariant(name, "its counts are not below zero", self.claimed >= 0 and self.credit >= 0)
        yield Invariant(
            name, "the error of the last failure is known", bool(self.failures) == bool(self.last_error)
        )
