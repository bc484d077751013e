"""Waits for several descriptors at once, wherever that needs which system call."""

import select
import sys

READ = 1
WRITE = 2


class Poller:
    """Waits until one of some descriptors is ready.

    poll(2) where it can: select(2) knows no descriptor above 1023. On macOS select, because poll there does
    not work with terminals.
    """

    def __init__(self) -> None:
        self._poll = None if sys.platform == "darwin" else select.poll()
        self._registered: dict[int, int] = {}

    def wait(self, wanted: dict[int, int], timeout_s: float | None = None) -> dict[int, int]:
        """Return which of the `wanted` descriptors are ready, and for what (`READ`, `WRITE`, both).

        A descriptor in error is ready for all that was wanted of it: the call then tells the error.
        """
        if self._poll is None:
            readers = [d for d, events in wanted.items() if events & READ]
            writers = [d for d, events in wanted.items() if events & WRITE]
            readable, writable, _ = select.select(readers, writers, [], timeout_s)
            ready = dict.fromkeys(readable, READ)
            for descriptor in writable:
                ready[descriptor] = ready.get(descriptor, 0) | WRITE
            return ready
        self._register(wanted)
        timeout_ms = None if timeout_s is None else timeout_s * 1000
        return {d: self._translate(d, events) for d, events in self._poll.poll(timeout_ms)}

    def _register(self, wanted: dict[int, int]) -> None:
        assert self._poll is not None  # noqa: S101 - for type checkers
        if wanted == self._registered:
            return
        for descriptor in self._registered.keys() - wanted.keys():
            self._poll.unregister(descriptor)
        for descriptor, events in wanted.items():
            mask = (select.POLLIN if events & READ else 0) | (select.POLLOUT if events & WRITE else 0)
            self._poll.register(descriptor, mask)
        self._registered = dict(wanted)

    def _translate(self, descriptor: int, events: int) -> int:
        wanted = self._registered[descriptor]
        if events & (select.POLLERR | select.POLLHUP | select.POLLNVAL):
            return wanted
        return (READ if events & select.POLLIN else 0) | (WRITE if events & select.POLLOUT else 0)
