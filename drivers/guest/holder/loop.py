"""The holder's event loop."""

import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

OnReady = Callable[[int], None]

_EXIT_POLL_S = 0.05
_CHUNK = 1 << 16


class Loop:
    """Waits for descriptors and calls whom they concern. One thread; only `call` may come from others."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._calls: deque[Callable[[], None]] = deque()
        self._timers: dict[object, Callable[[], None]] = {}
        self._repeated: dict[object, tuple[float, float, Callable[[], None]]] = {}
        reader, self._waker = socket.socketpair()
        for end in (reader, self._waker):
            end.setblocking(False)
        self._reader = reader
        self.watch(reader.fileno(), selectors.EVENT_READ, self._wake)

    def watch(self, descriptor: int, events: int, on_ready: OnReady) -> None:
        """Call `on_ready` with the events that are ready; 0 events: no more."""
        known = descriptor in self._selector.get_map()
        if not events:
            if known:
                self._selector.unregister(descriptor)
        elif known:
            self._selector.modify(descriptor, events, on_ready)
        else:
            self._selector.register(descriptor, events, on_ready)

    def poll(self, key: object, check: Callable[[], None] | None) -> None:
        """Call `check` several times a second, until None takes its place."""
        if check is None:
            self._timers.pop(key, None)
        else:
            self._timers[key] = check

    def repeat(
        self, key: object, interval_s: float, check: Callable[[], None] | None, *, first_s: float = 0.0
    ) -> None:
        """Call `check` once each interval, for the first time in `first_s`, until None takes its place."""
        self._repeated.pop(key, None)
        if check is not None:
            self._repeated[key] = (time.monotonic() + first_s, interval_s, check)

    def call(self, function: Callable[[], None]) -> None:
        """Call `function` in the loop's thread, soon."""
        self._calls.append(function)
        with suppress(BlockingIOError):
            self._waker.send(b"w")

    def _wake(self, _: int) -> None:
        with suppress(BlockingIOError):
            self._reader.recv(_CHUNK)
        while self._calls:
            self._calls.popleft()()

    def run_once(self) -> None:
        """Wait once, and serve what is ready."""
        for key, ready in self._selector.select(self._patience()):
            # What was called earlier in this round may have closed it, and another may have its number now.
            if self._selector.get_map().get(key.fd) == key:
                on_ready: OnReady = key.data
                on_ready(ready)
        for check in list(self._timers.values()):
            check()
        for owner, (due, interval_s, check) in list(self._repeated.items()) if self._repeated else ():
            if time.monotonic() >= due:
                self._repeated[owner] = (time.monotonic() + interval_s, interval_s, check)
                check()

    def _patience(self) -> float | None:
        """Return for how many seconds there is nothing to do but to wait; None: for ever."""
        if not self._repeated:
            return _EXIT_POLL_S if self._timers else None
        least = max(0.0, min(due for due, _, _ in self._repeated.values()) - time.monotonic())
        return min(least, _EXIT_POLL_S) if self._timers else least

    def close(self) -> None:
        """Give the loop's own descriptors back."""
        self._selector.close()
        self._reader.close()
        self._waker.close()
