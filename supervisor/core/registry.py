"""All sessions, or all instances: the live ones, and what is remembered of those that ended last."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar

from claude_vm.supervisor.core.errors import InvalidTransition
from claude_vm.supervisor.core.events import Event
from claude_vm.supervisor.core.invariants import Invariant, Invariants
from claude_vm.supervisor.core.story import Step, Story, StoryBook

RETIRED_IDS = 4096
"""Ended ids that are remembered, so that late news is told from nonsense; what is later counts as unknown."""

State = TypeVar("State", bound=str)


class Stateful(Protocol[State]):
    """What a registry holds: something that stands in a state of its own."""

    state: State


Item = TypeVar("Item", bound=Stateful[Any])


class Registry(Generic[Item, State]):
    """Live items by id, in the order of their arrival.

    `absent` and `ended` are the states of ids that are unknown, and of those that
    came to their end not long ago.
    """

    def __init__(self, *, absent: State, ended: State) -> None:
        self._absent = absent
        self._ended = ended
        self._live: dict[str, Item] = {}
        self._retired: OrderedDict[str, None] = OrderedDict()
        self._stories = StoryBook()

    def __len__(self) -> int:
        return len(self._live)

    def __getitem__(self, key: str) -> Item:
        return self._live[key]

    def add(self, key: str, item: Item) -> None:
        """Take a new item in."""
        self._live[key] = item

    def find(self, key: str) -> Item | None:
        """Return a live item, or None."""
        return self._live.get(key)

    def all(self) -> list[Item]:
        """Return the live items, as a list of the caller's own."""
        return list(self._live.values())

    def retire(self, key: str) -> None:
        """Let go of an item that has come to its end; its id and story are remembered for a while."""
        del self._live[key]
        self._stories.finish(key)
        self._retired[key] = None
        if len(self._retired) > RETIRED_IDS:
            self._retired.popitem(last=False)

    def state(self, key: str) -> State:
        """Return the state of any id."""
        item = self._live.get(key)
        if item is None:
            return self._ended if key in self._retired else self._absent
        state: State = item.state
        return state

    def record(self, key: str, step: Step) -> None:
        """Add a step to the story of a live item."""
        self._stories.record(key, step)

    def story(self, key: str) -> Story:
        """Return the story of any id, as far as it is remembered."""
        return self._stories.of(key)

    def told(self) -> Iterator[str]:
        """Yield the ids whose story is remembered, the ended ones first."""
        yield from self._stories

    def unfit(self, key: str, event: Event) -> InvalidTransition:
        """Return the error for an event that does not fit."""
        return InvalidTransition(key=key, state=self.state(key), event=event, story=self.story(key))

    def invariants(self) -> Invariants:
        """Yield what must hold of the ids, living and ended."""
        for key, item in self._live.items():
            steps = self.story(key).steps
            yield Invariant(
                key, "its story ends where it stands", bool(steps) and steps[-1].after == item.state
            )
            yield Invariant(key, "it lives", item.state not in {self._absent, self._ended})
            yield Invariant(key, "it has not ended before", key not in self._retired)
        yield Invariant("registry", "few ended ids are kept", len(self._retired) <= RETIRED_IDS)
