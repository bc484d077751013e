"""Which driver: by name, or the best that this host has."""

import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from claude_vm.drivers.api import Driver, Inspection, Owner
from claude_vm.drivers.errors import DriverError
from claude_vm.drivers.names import ALL, AUTO, ISOLATING, LIMA, NAMES, QEMU, SIM
from claude_vm.drivers.programs import Programs, own

__all__ = ["ALL", "ISOLATING", "check", "folders", "inspect", "open_driver", "programs_of", "usable"]

# Imports are left to functions because drivers are heavy, and most commands need only a name.


async def usable(programs: Programs) -> list[str]:
    """Return the drivers that ``auto`` may mean where these programs are, the preferred one first.

    That is never the simulation, which isolates nothing.

    Raises:
        ToolMissingError: Nothing that it could mean is installed.
    """
    from claude_vm.drivers.prerequisites.lima import works  # noqa: PLC0415
    from claude_vm.drivers.prerequisites.programs import this_host  # noqa: PLC0415
    from claude_vm.drivers.vm.accelerator import INSTALL_HINT, architecture  # noqa: PLC0415

    programs.need(f"qemu-system-{architecture()}", INSTALL_HINT)
    # Lima needs QEMU too, and refuses to be run by root. On macOS nobody has tried it yet.
    limactl = programs.find("limactl") if sys.platform == "linux" and os.geteuid() != 0 else None
    has_lima = limactl is not None and await works(this_host(programs), limactl)
    return [name for name in ISOLATING if name != LIMA or has_lima]


async def inspect(name: str, programs: Programs) -> Inspection:
    """Return what this host has and lacks for a driver, before it is opened. Never raises."""
    from claude_vm.drivers.prerequisites import lima  # noqa: PLC0415
    from claude_vm.drivers.prerequisites.programs import hypervisor, template_tools, this_host  # noqa: PLC0415

    host = this_host(programs)
    if name == LIMA:
        return await lima.inspect(host)
    if name == QEMU:
        installed = host.which(f"qemu-system-{host.machine}") is not None
        return Inspection(installed, problems=(*hypervisor(host), *template_tools(host)))
    return Inspection(installed=True)


def programs_of(name: str) -> Sequence[str]:
    """Return the names of the programs that a driver can't do without.

    Raises:
        DriverError: We have no machine for this architecture.
    """
    from claude_vm.drivers.vm.accelerator import programs  # noqa: PLC0415

    return {LIMA: (*programs(), "limactl"), QEMU: programs()}.get(name, ())


def folders(home: Path) -> Sequence[Path]:
    """Return where drivers keep what belongs to a data folder, in it or elsewhere. It may be missing."""
    from claude_vm.drivers.lima.home import lima_home  # noqa: PLC0415

    return (lima_home(home),)


def check(name: str) -> None:
    """Refuse a name of no driver.

    Raises:
        DriverError: There is no such driver.
    """
    if name not in NAMES:
        raise DriverError(f"there is no driver '{name}'", hint=f"known are: {', '.join(NAMES)}")


@asynccontextmanager
async def open_driver(name: str, owner: Owner, programs: Programs | None = None) -> AsyncIterator[Driver]:
    """Open a driver by its name, for as long as the block lasts.

    ``auto`` is the preferred one of those that can be used. It looks for its programs in `programs` until it
    is told others; without any, where this process would find them.

    Raises:
        DriverError: There is no such driver, or nothing is installed that ``auto`` could mean.
    """
    check(name)
    programs = own() if programs is None else programs
    chosen = (await usable(programs))[0] if name == AUTO else name
    async with _opener(chosen)(owner, programs) as driver:
        yield driver


def _opener(name: str) -> Callable[[Owner, Programs], AbstractAsyncContextManager[Driver]]:
    if name == LIMA:
        from claude_vm.drivers.lima.driver import open_driver as open_lima  # noqa: PLC0415

        return open_lima
    if name == SIM:
        from claude_vm.drivers.sim.driver import open_driver as open_sim  # noqa: PLC0415

        return lambda owner, _: open_sim(owner)
    from claude_vm.drivers.qemu.driver import open_driver as open_qemu  # noqa: PLC0415

    return open_qemu
