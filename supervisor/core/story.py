"""What happened to one session or instance: bounded, and readable by people.

Not to be confused with the journal, which survives the supervisor. A story is for error texts and logs.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import NamedTuple

STEPS_PER_KEY = 32
"""Steps that are remembered for one key; the oldest go first."""

FINISHED_KEYS = 256
"""Stories that are kept after their key has come to its end."""

NOTE_LENGTH = 200
"""Characters of a note that are kept."""


class Step(NamedTuple):
    """One transition. `at` is the event's instant, `cause` the name of the event or order that led to it."""

    at: float
    before: str
    cause: str
    after: str
    note: str = ""

    def __str__(self) -> str:
        """The step as one line, whatever bytes a guest or a tool put into the note."""
        note = f" ({''.join(map(_visible, self.note))})" if self.note else ""
        return f"{self.at:.3f} {self.before} --{self.cause}--> {self.after}{note}"


class Story(NamedTuple):
    """The last steps of one key, oldest first. Empty where the key is unknown or long gone."""

    key: str
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        """The steps, one a line."""
        return "\n".join(f"  {step}" for step in self.steps)


class StoryBook:
    """The stories of all live keys, and of those that ended last.

    Memory is bounded by the number of live keys: each has at most `STEPS_PER_KEY` steps, and at most
    `FINISHED_KEYS` stories outlive their key.
    """

    def __init__(self) -> None:
        self._live: dict[str, deque[Step]] = {}
        self._finished: OrderedDict[str, deque[Step]] = OrderedDict()

    def record(self, key: str, step: Step) -> None:
        """Add a step to a live key's story, which begins with its first step."""
        steps = self._live.get(key)
        if steps is None:
            steps = self._live[key] = deque(maxlen=STEPS_PER_KEY)
        steps.append(step)

    def finish(self, key: str) -> None:
        """Mark a key's story as complete; from now on it may be forgotten for newer ones."""
        self._finished[key] = self._live.pop(key)
        if len(self._finished) > FINISHED_KEYS:
            self._finished.popitem(last=False)

    def __iter__(self) -> Iterator[str]:
        """Yield the keys, the ended ones first."""
        yield from self._finished
        yield from self._live

    def of(self, key: str) -> Story:
        """Return the story of a key, as far as it is remembered."""
        steps = self._live.get(key) or self._finished.get(key) or ()
        return Story(key, tuple(steps))


def cut(note: str) -> str:
    """Return a note that is not too long to be kept."""
    return note if len(note) <= NOTE_LENGTH else note[: NOTE_LENGTH - 1] + "…"


def _visible(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
