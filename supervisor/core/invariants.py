"""What must hold between any two events: statements that whoever owns the state makes, and their check."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Invariant(NamedTuple):
    """A statement about a session, an instance, a key or a whole, and whether it holds."""

    subject: object
    statement: str
    holds: bool


Invariants = Iterator[Invariant]


class BrokenInvariant(Exception):  # noqa: N818 - the word of the field; it is no failure of the outside
    """The core contradicts itself: a defect of its own. `broken` are the statements that don't hold."""

    code = "broken-invariant"

    def __init__(self, broken: Iterable[Invariant]) -> None:
        self.broken = tuple(broken)
        super().__init__("; ".join(f"{subject}: {statement}" for subject, statement, _ in self.broken))


def check(invariants: Iterable[Invariant]) -> None:
    """Check all statements.

    Raises:
        BrokenInvariant: Some don't hold.
    """
    broken = [invariant for invariant in invariants if not invariant.holds]
    if broken:
        raise BrokenInvariant(broken)
