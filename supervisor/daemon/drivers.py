"""The drivers that this supervisor has open, each kept by a task of its own."""

from collections.abc import Callable
from contextlib import AsyncExitStack

import anyio
from anyio.abc import TaskGroup

from claude_vm.drivers import registry
from claude_vm.drivers.api import Driver, Owner
from claude_vm.drivers.errors import DriverError
from claude_vm.drivers.programs import Programs


class DriverSet:
    """Opens a driver on its first use; closes all when the task group that it was given is cancelled.

    A driver's context is entered and left in one task, as structured concurrency wants it, although many
    tasks ask for the driver. `programs` are where a driver looks for its programs until a client asks for it.
    `prestarting` are those of the open ones that can start a VM's process ahead; `changed` is called when
    they have become others.
    """

    def __init__(
        self, owner: Owner, tasks: TaskGroup, programs: Programs, changed: Callable[[], None] = lambda: None
    ) -> None:
        self.owner = owner
        self.prestarting: frozenset[str] = frozenset()
        self._changed = changed
        self._tasks = tasks
        self._programs = programs
        self._open: dict[str, Driver] = {}
        self._lock = anyio.Lock()

    async def get(self, name: str, programs: Programs | None = None) -> Driver:
        """Return an open driver by name.

        `programs` are where a client that asks for it would find its programs, which counts from then on,
        also for what is made when no client is there.

        Raises:
            DriverError: There is no such driver, or this host can't use it.
        """
        registry.check(name)
        async with self._lock:
            if name not in self._open:
                self._open[name] = await self._tasks.start(self._keep, name)
            driver = self._open[name]
        if isinstance(driver, DriverError):  # _keep could not open it
            del self._open[name]
            raise driver
        if programs is not None:
            driver.look_in(programs)
        return driver

    def opened(self, name: str) -> Driver:
        """Return a driver that is open already."""
        return self._open[name]

    async def _keep(self, name: str, *, task_status: anyio.abc.TaskStatus[Driver | DriverError]) -> None:
        async with AsyncExitStack() as stack:
            try:
                driver = await stack.enter_async_context(
                    registry.open_driver(name, self.owner, self._programs)
                )
            except DriverError as error:
                task_status.started(error)
                return
            if (await driver.capabilities()).prestart:
                self.prestarting |= {name}
                self._changed()
            task_status.started(driver)
            await anyio.sleep_forever()
