"""What tasks wait for: a change that all of them look at, or one that a single task must not miss."""

import anyio


class Condition:
    """Wakes all tasks that wait for something to change; they look again for themselves.

    Between their look and `wait` must be no await. Waking costs nothing when nobody waits.
    """

    def __init__(self) -> None:
        self._event: anyio.Event | None = None

    def notify_all(self) -> None:
        """Wake the waiting tasks. Never waits."""
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait(self) -> None:
        """Wait for the next `notify_all`."""
        if self._event is None:
            self._event = anyio.Event()
        await self._event.wait()


class AutoResetEvent:
    """Wakes one task, once for any number of calls of `set` since it waited last."""

    def __init__(self) -> None:
        self.is_set = False
        self._condition = Condition()

    def set(self) -> None:
        """Wake the task, now or when it waits next. Never waits."""
        self.is_set = True
        self._condition.notify_all()

    async def wait(self) -> None:
        """Wait until it is set, and reset it; one that is cancelled meanwhile does not."""
        while not self.is_set:
            await self._condition.wait()
        self.is_set = False
