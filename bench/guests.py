"""Guests of the bench's own, made by the driver's interface: the other side of the ratios.

The driver is written for an event loop; commands are measured by threads that only wait. So the loop has a
thread of its own here, and everything in this module is called from outside of it.
"""

import contextlib
import secrets
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import anyio
import anyio.from_thread
import psutil

from claude_vm.bench.errors import BenchError
from claude_vm.bench.site import Site
from claude_vm.bench.ssh import Login, open_login
from claude_vm.drivers import registry
from claude_vm.drivers.api import Access, Driver, InstanceSpec, Mount, Owner, TemplateRecord
from claude_vm.drivers.errors import DriverError
from claude_vm.drivers.memory import MIB
from claude_vm.supervisor.daemon.state import identity

T = TypeVar("T")

SUPERVISOR_ID = "bench"


class Guests:
    """Makes guests of one template in one home. Made by `open_guests`."""

    def __init__(
        self,
        portal: anyio.from_thread.BlockingPortal,
        owner: Owner,
        driver: Driver,
        site: Site,
        record: TemplateRecord,
    ) -> None:
        self._portal = portal
        self.owner = owner
        self.driver = driver
        self.site = site
        self.record = record

    def call(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run something in the loop and return its result.

        Raises:
            BenchError: The driver fails.
        """
        try:
            return self._portal.call(work)
        except DriverError as error:
            raise BenchError(f"the bench's guest: {error}", error.hint) from error

    def spec(self) -> InstanceSpec:
        """Return what a session in the project would ask for, with a fresh id."""
        root = str(self.site.project)
        return InstanceSpec(
            instance_id=f"i-{secrets.token_hex(5)}",
            template=self.record.name,
            generation=self.record.generation,
            cpus=self.record.cpus,
            memory_mib=self.record.memory_mib,
            disk_gib=self.record.disk_gib,
            mounts=(Mount(host=root, guest=root),),
        )

    @contextlib.contextmanager
    def started(self) -> Iterator[tuple[InstanceSpec, Access]]:
        """Give a started guest, which is deleted at the end.

        Raises:
            BenchError: It does not come up.
        """
        spec = self.spec()

        async def make() -> Access:
            await self.driver.clone(spec)
            return await self.driver.start(spec.instance_id, lambda *_: None)

        try:
            yield spec, self.call(make)
        finally:
            self.call(lambda: self.driver.delete(spec.instance_id))

    @contextlib.contextmanager
    def logged_in_at(self) -> Iterator[tuple[Login, str]]:
        """Give a guest with an open OpenSSH connection, and its id."""
        with self.started() as (spec, access), open_login(access) as login:
            yield login, spec.instance_id

    def pid(self, instance_id: str) -> int:
        """Return the process of a guest's VM, 0 when it has none."""
        records = self.call(self.driver.list_instances)
        return next((r.pid or 0 for r in records if r.instance_id == instance_id), 0)


@contextlib.contextmanager
def open_guests(site: Site, driver_name: str, template: str) -> Iterator[Guests]:
    """Open a driver in a site's home, beside the site's daemon, for guests of a template.

    A bench that is killed leaves a lock that anybody can take, so the next daemon of that home deletes these
    guests.

    Raises:
        BenchError: The template is not there.
    """
    runtime = site.runtime
    runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
    owner = Owner(home=site.home, supervisor_id=SUPERVISOR_ID, runtime=runtime)
    with (
        identity.locked(site.home, SUPERVISOR_ID),
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(registry.open_driver(driver_name, owner)) as driver,
    ):
        records = portal.call(driver.templates)
        record = next((r for r in records if r.name == template), None)
        if record is None:
            raise BenchError(f"the template {template} does not exist")
        yield Guests(portal, owner, driver, site, record)


def pss_mib(pid: int) -> float:
    """Return the memory of a process in MiB, where pages that are shared count in parts.

    Raises:
        BenchError: This system does not tell, or the process is gone.
    """
    try:
        return float(psutil.Process(pid).memory_full_info().pss) / MIB
    except (psutil.Error, AttributeError) as error:
        raise BenchError(f"the memory of process {pid} can't be read: {error}") from error
