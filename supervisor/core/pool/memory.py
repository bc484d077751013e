"""What unclaimed instances take of the host's memory, and what is left for more. Pure: it is told.

An instance counts with what the ready ones of its kind (template, generation, sizes) were measured to take,
with a margin; with its configured memory as long as none was measured. The figure of a kind rises at once and
falls only when it is far too high, so that the room does not flicker.
"""

from collections import Counter, OrderedDict

from claude_vm.supervisor.core.invariants import Invariant, Invariants
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.core.policy import PoolPolicy

MARGIN = 1.25
"""What an instance may grow by before the next look at it, as a factor."""

FLOOR_MIB = 128
"""The least that an instance counts with: its processes, page tables and sockets."""

FAR_TOO_HIGH = 0.75
"""A figure falls when what it would be now is less than this part of it."""

KEPT_KINDS = 128
"""Kinds whose figure is remembered, those measured last."""


class Memory:
    """The accounts. All in MiB, by kinds: keys without mounts (`PoolKey.kind`).

    `used_mib` is what all unclaimed instances count with. `available_mib` is what the host's programs could
    get without swapping when somebody looked last, None as long as nobody has.
    """

    def __init__(self) -> None:
        self.used_mib = 0
        self.available_mib: int | None = None
        self._ready_mib = 0
        self._figures: OrderedDict[PoolKey, int] = OrderedDict()
        self._counts: dict[PoolKey, tuple[int, int]] = {}  # unclaimed ones of a kind, and how many are ready
        self._host_mib = float("inf")

    def takes_mib(self, kind: PoolKey) -> int:
        """Return what an instance of a kind counts with."""
        return self._figures.get(kind, kind.memory_mib)

    def is_measured(self, kind: PoolKey) -> bool:
        """Tell whether that was measured, and is not just what is configured."""
        return kind in self._figures

    def measure(self, kind: PoolKey, measured_mib: int) -> None:
        """Note what a ready instance of a kind takes, without a margin."""
        before = self.takes_mib(kind)
        figure = max(FLOOR_MIB, int(measured_mib * MARGIN))
        if kind in self._figures and before * FAR_TOO_HIGH <= figure <= before:
            figure = before
        self._figures[kind] = figure
        self._figures.move_to_end(kind)
        self._add(kind, figure - before)
        if len(self._figures) > KEPT_KINDS:
            idle = next((known for known in self._figures if known not in self._counts), None)
            if idle is not None:
                del self._figures[idle]

    def hear(self, available_mib: int) -> None:
        """Note what is available on the host now.

        That, and what the ready instances take already, is all that there is for them.
        """
        self.available_mib = available_mib
        self._host_mib = available_mib + self._ready_mib

    def room_mib(self, policy: PoolPolicy) -> float:
        """Return what the budget and the host leave for further unclaimed instances; may be below 0."""
        budget = policy.memory_budget_mib
        within = float("inf") if budget is None else budget - self.used_mib
        return min(within, self._host_mib - self.used_mib - 2 * policy.memory_reserve_mib)

    def excess_mib(self, policy: PoolPolicy) -> float:
        """Return how much must be given up: by the budget, and by what the host had left at the last look."""
        budget = policy.memory_budget_mib
        over = 0.0 if budget is None else self.used_mib - budget
        return max(over, self._ready_mib - self._host_mib + policy.memory_reserve_mib)

    def expect(self, kind: PoolKey) -> None:
        """Count an instance that is made without a session."""
        self._count(kind, 1, 0)

    def offer(self, kind: PoolKey) -> None:
        """An expected instance is ready."""
        self._count(kind, 0, 1)

    def take_out(self, kind: PoolKey, *, is_ready: bool) -> None:
        """Count an instance no longer."""
        self._count(kind, -1, -int(is_ready))

    def invariants(self, unclaimed: Counter[PoolKey], ready: Counter[PoolKey]) -> Invariants:
        """Yield what must hold, given how many instances of each kind there really are."""
        counts = {kind: (count, ready[kind]) for kind, count in unclaimed.items()}
        yield Invariant("memory", "each kind is counted right", counts == self._counts)
        used_mib = sum(count * self.takes_mib(kind) for kind, count in unclaimed.items())
        ready_mib = sum(count * self.takes_mib(kind) for kind, count in ready.items())
        yield Invariant(
            "memory", "the sums are right", (used_mib, ready_mib) == (self.used_mib, self._ready_mib)
        )

    def _count(self, kind: PoolKey, more: int, more_ready: int) -> None:
        takes_mib = self.takes_mib(kind)
        unclaimed, ready = self._counts.pop(kind, (0, 0))
        if unclaimed + more:
            self._counts[kind] = unclaimed + more, ready + more_ready
        self.used_mib += more * takes_mib
        self._ready_mib += more_ready * takes_mib

    def _add(self, kind: PoolKey, each_mib: int) -> None:
        """All instances of a kind count with so much more."""
        unclaimed, ready = self._counts.get(kind, (0, 0))
        self.used_mib += unclaimed * each_mib
        self._ready_mib += ready * each_mib
