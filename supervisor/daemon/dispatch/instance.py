"""What the dispatcher knows about an instance that the core need not know, and who watches over it."""

from collections.abc import Callable

import anyio
import anyio.abc
import structlog

from claude_vm.drivers.api import Access
from claude_vm.drivers.errors import DriverError
from claude_vm.supervisor.core import events as ev
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.daemon.drivers import DriverSet
from claude_vm.supervisor.ssh.errors import SshError
from claude_vm.supervisor.ssh.link import Link
from claude_vm.supervisor.ssh.shells import Shells

log = structlog.get_logger()

WATCH_AGAIN_S = 10.0
"""Pause, in seconds, before a VM is watched again whose watcher failed by a bug of ours."""


class Instance:
    """One instance at run time.

    `key` is None if a dead supervisor left it for deletion. `scope` is that of its effect in flight, if there
    is one. `access`, `link` and `shells` are there from the end of the effect that made them until it is
    deleted; `shells` until a session takes them. `ahead` is a connection that was made while it started,
    until it becomes the `link`; `refusal` is why none could be made.
    """

    def __init__(self, instance_id: str, driver: str, key: PoolKey | None = None) -> None:
        self.instance_id = instance_id
        self.driver = driver
        self.key = key
        self.scope: anyio.CancelScope | None = None
        self.access: Access | None = None
        self.ahead: Link | None = None
        self.refusal: SshError | None = None
        self.link: Link | None = None
        self.shells: Shells | None = None
        self._watches: list[anyio.CancelScope] = []

    @property
    def is_warm(self) -> bool:
        """Whether it is connected, and nothing is being done with it."""
        return self.link is not None and self.scope is None

    def watching(self) -> anyio.CancelScope:
        """Return a scope for a watcher, which `stop_watching` cancels."""
        scope = anyio.CancelScope()
        self._watches.append(scope)
        return scope

    def stop_watching(self) -> None:
        """Stop all watchers: what they would tell from now on is of our own making."""
        for scope in self._watches:
            scope.cancel()
        self._watches.clear()


class Watchers:
    """Tell the core when a VM dies, or is out of reach while nobody uses it.

    Whatever happens while one is watched, the supervisor and its other VMs go on.
    """

    def __init__(
        self, drivers: DriverSet, tasks: anyio.abc.TaskGroup, post: Callable[[ev.Event], None]
    ) -> None:
        self._drivers = drivers
        self._tasks = tasks
        self._post = post

    def watch_vm(self, instance: Instance) -> None:
        """Watch the VM's process until `Instance.stop_watching`."""
        self._tasks.start_soon(self._watch_vm, instance, instance.watching())

    def watch_link(self, instance: Instance, link: Link) -> None:
        """Watch the connection until `Instance.stop_watching`."""
        self._tasks.start_soon(self._watch_link, instance, link, instance.watching())

    async def _watch_vm(self, instance: Instance, scope: anyio.CancelScope) -> None:
        with scope:
            self._tell(instance, await self._death(instance))

    async def _death(self, instance: Instance) -> str:
        """Return why the VM ended, once it has, or why nobody can tell."""
        while True:
            try:
                driver = await self._drivers.get(instance.driver)
                return await driver.wait_stopped(instance.instance_id)
            except DriverError as error:
                return str(error)
            except Exception:  # that tells nothing about the VM, in which a session may run
                log.exception("watch-failed", instance=instance.instance_id)
            await anyio.sleep(WATCH_AGAIN_S)

    async def _watch_link(self, instance: Instance, link: Link, scope: anyio.CancelScope) -> None:
        """A session that is under way notices the loss by itself, with what it had to do with it."""
        with scope:
            try:
                reason = await link.wait_closed()
            except Exception as error:  # nobody uses it, so it costs least to take it for lost
                log.exception("watch-failed", instance=instance.instance_id)
                reason = str(error)
            if instance.is_warm:
                self._tell(instance, f"the connection to it was lost: {reason}")

    def _tell(self, instance: Instance, reason: str) -> None:
        self._post(ev.VmDied(at=anyio.current_time(), instance_id=instance.instance_id, reason=reason))
