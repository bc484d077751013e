"""Which of the ports that a guest listens at are published under ``auto``. Pure: it opens nothing.

The guest is hostile: it may listen at every port there is, or at others each second. So a session publishes a
few at a time, and few over its whole life.
"""

from collections.abc import Set as AbstractSet

import msgspec

from claude_vm.context.ports import LOWEST, SSH

MOST = 16
"""Ports that follow the guest at a time."""

MOST_EVER = 64
"""Different ports that follow one guest in all."""


class Changes(msgspec.Struct, frozen=True):
    """What is to be done, lowest port first. `overflow` is told once: some port will not be published."""

    open: tuple[int, ...] = ()
    close: tuple[int, ...] = ()
    overflow: bool = False


class Following:
    """What follows one guest. `fixed` are the guest's ports that are published anyway."""

    def __init__(self, fixed: AbstractSet[int]) -> None:
        self._fixed = frozenset(fixed)
        self._open: set[int] = set()
        self._ever: set[int] = set()
        self._overflowed = False

    def candidates(self, listening: AbstractSet[int]) -> list[int]:
        """Return which of these ports could be published and are not fixed, lowest first."""
        return sorted(p for p in listening if p >= LOWEST and p != SSH and p not in self._fixed)

    def changes(self, listening: AbstractSet[int]) -> Changes:
        """Take what the guest listens at now; return what follows. It counts as done."""
        wanted = self.candidates(listening)
        closed = sorted(self._open.difference(wanted))
        self._open.difference_update(closed)
        opened: list[int] = []
        left_out = False
        for port in wanted:
            if port in self._open:
                continue
            if len(self._open) >= MOST or (port not in self._ever and len(self._ever) >= MOST_EVER):
                left_out = True
                continue
            self._open.add(port)
            self._ever.add(port)
            opened.append(port)
        overflow = left_out and not self._overflowed
        self._overflowed |= left_out
        return Changes(tuple(opened), tuple(closed), overflow)
