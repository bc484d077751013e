"""The thread in which the simulated guests' holders run: the real one's code, without a process for each."""

import threading
from collections.abc import Callable

import anyio.to_thread

from claude_vm.drivers.guest.holder import Loop


class HolderThread:
    """A holder loop in a thread of its own, started when it is first needed."""

    def __init__(self) -> None:
        self.loop = Loop()
        self._thread: threading.Thread | None = None
        self._ends = False

    def call(self, function: Callable[[], None]) -> None:
        """Run a function in the thread, soon."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="holders", daemon=True)
            self._thread.start()
        self.loop.call(function)

    async def call_and_wait(self, function: Callable[[], None]) -> None:
        """Run a function in the thread; return when it has."""
        done = threading.Event()

        def run() -> None:
            try:
                function()
            finally:
                done.set()

        self.call(run)
        await anyio.to_thread.run_sync(done.wait, 10)

    def close(self) -> None:
        """End the thread. All its holders are closed by then."""
        if self._thread is not None:
            self.loop.call(self._end)
            self._thread.join(10)
        self.loop.close()

    def _end(self) -> None:
        self._ends = True

    def _run(self) -> None:
        while not self._ends:
            self.loop.run_once()
