"""What there is of one pool key: its unclaimed instances, its sessions' ones, and the wish for more."""

from collections import OrderedDict
from collections.abc import Iterator

import msgspec

from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.core.policy import PoolPolicy


class Shelf(msgspec.Struct):
    """One key's part of the pool. Only the pool and its upkeep change it.

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
    of that than it has wishes. `displaces` tells that some did for the next one. `gave_way` says why the last
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

    @property
    def recency(self) -> float:
        """The last use as a rank: what was used longer ago is lower."""
        return float("-inf") if self.last_used_at is None else self.last_used_at

    @property
    def is_needless(self) -> bool:
        """Whether nothing would be lost without it."""
        return not (self.wanted or self.claimed or self.asked or self.making or self.paused or self.warm)

    def unclaimed(self) -> Iterator[str]:
        """Yield the unclaimed instances, the least valuable first."""
        yield from self.making
        yield from self.paused
        yield from self.warm

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

    def clear_failures(self) -> None:
        """Let what failed before not count any more."""
        self.failures = 0
        self.last_error = ""
        self.ready_at = None
