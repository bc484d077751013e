"""What is due when, and the alarms that it needs. Pure: it is told the time."""

from collections.abc import Hashable, Iterator
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

SLACK = 64
"""Entries of a heap that may be out of date before it is built anew, beside as many as are up to date."""

Item = TypeVar("Item", bound=Hashable)
Rank = TypeVar("Rank", float, tuple[bool, bool, float])


class Ranking(Generic[Item, Rank]):
    """Items by rank, lowest first; among equals the one that was put first. Each has one rank.

    Every operation is O(log n) on average: an item that leaves stays in the heap until it comes to the top,
    or until such ones are the majority.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[Rank, int, Item]] = []
        self._ranks: dict[Item, tuple[Rank, int]] = {}
        self._puts = 0

    def __len__(self) -> int:
        return len(self._ranks)

    def __contains__(self, item: Item) -> bool:
        return item in self._ranks

    def __iter__(self) -> Iterator[Item]:
        return iter(self._ranks)

    def put(self, item: Item, rank: Rank) -> None:
        """Rank an item, whether it had a rank or not."""
        self._puts += 1
        self._ranks[item] = (rank, self._puts)
        heappush(self._heap, (rank, self._puts, item))
        self._tidy()

    def discard(self, item: Item) -> None:
        """Forget an item, if it is there."""
        if self._ranks.pop(item, None) is not None:
            self._tidy()

    def rank(self, item: Item) -> Rank | None:
        """Return an item's rank, or None if it has none."""
        entry = self._ranks.get(item)
        return None if entry is None else entry[0]

    def first(self) -> tuple[Rank, Item] | None:
        """Return the lowest rank and its item, or None if there are no items."""
        while self._heap:
            rank, put, item = self._heap[0]
            if self._ranks.get(item) == (rank, put):
                return rank, item
            heappop(self._heap)
        return None

    def _tidy(self) -> None:
        if len(self._heap) > 2 * len(self._ranks) + SLACK:
            self._heap = [(rank, put, item) for item, (rank, put) in self._ranks.items()]
            heapify(self._heap)


class Deadlines(Ranking[Item, float]):
    """Instants at which items are due, and the few alarms that they need.

    An alarm, once asked for, can't be taken back. `wake` asks for one only when none that comes early enough
    is under way; one that finds nothing due does no harm.
    """

    def __init__(self) -> None:
        super().__init__()
        self._alarms: list[float] = []  # under way, each earlier than the one before

    def set(self, item: Item, at: float) -> None:
        """Let an item be due at an instant, and at no other."""
        self.put(item, at)

    def at(self, item: Item) -> float | None:
        """Return the instant at which an item is due, or None."""
        return self.rank(item)

    def rung(self, now: float) -> None:
        """Note that the alarms up to now have rung. Call it at each tick, before `take`."""
        while self._alarms and self._alarms[-1] <= now:
            self._alarms.pop()

    def take(self, now: float) -> Item | None:
        """Return one item that is due now and forget it, or None. What it leads to may cancel others."""
        first = self.first()
        if first is None or first[0] > now:
            return None
        self.discard(first[1])
        return first[1]

    def wake(self) -> float | None:
        """Return the instant of the alarm to ask for, or None if none is needed."""
        first = self.first()
        if first is None or (self._alarms and self._alarms[-1] <= first[0]):
            return None
        self._alarms.append(first[0])
        return first[0]
