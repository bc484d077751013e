"""The drivers that this supervisor has open, each kept by a task of its own."""

from contextlib import AsyncExitStack

import anyio
from anyio.abc import TaskGroup

from claude_vm.drivers import registry
from claude_vm.drivers.api import Driver, Owner
from claude_vm.drivers.errors import DriverError


class DriverSet:
    """Opens a driver on its first use; closes all when the task group that it was given is cancelled.

    A driver's context is entered and left in one task, as structured concurrency wants it, although many
    tasks ask for the driver.
    """

    def __init__(self, owner: Owner, tasks: TaskGroup) -> None:
        self.owner = owner
        self._tasks = tasks
        self._open: dict[str, Driver] = {}
        self._lock = anyio.Lock()

    async def get(self, name: str) -> Driver:
        """Return an open driver by name (``auto`` is resolved).

        Raises:
            DriverError: There is no such driver, or this host can't use it.
        """
        resolved = await registry.choose(name)
        async with self._lock:
            if resolved not in self._open:
                self._open[resolved] = await self._tasks.start(self._keep, resolved)
            driver = self._open[resolved]
        if isinstance(driver, DriverError):  # _keep could not open it
            del self._open[resolved]
            raise driver
        return driver

    def opened(self, name: str) -> Driver:
        """Return a driver that is open already."""
        return self._open[name]

    async def _keep(self, name: str, *, task_status: anyio.abc.TaskStatus[Driver | DriverError]) -> None:
        async with AsyncExitStack() as stack:
            try:
                driver = await stack.enter_async_context(registry.open_driver(name, self.owner))
            except DriverError as error:
                task_status.started(error)
                return
            task_status.started(driver)
            await anyio.sleep_forever()
