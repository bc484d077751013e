"""The Lima driver: VMs that `limactl` starts."""

import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from claude_vm.drivers.api import Inspection, Owner
from claude_vm.drivers.errors import DriverError, ToolMissingError
from claude_vm.drivers.lima import prerequisites
from claude_vm.drivers.lima.home import lima_home
from claude_vm.drivers.lima.hypervisor import Lima
from claude_vm.drivers.lima.prerequisites import LIMACTL
from claude_vm.drivers.prerequisites import this_host
from claude_vm.drivers.programs import Programs, own
from claude_vm.drivers.vm import accelerator
from claude_vm.drivers.vm.driver import VmDriver, open_vm_driver

needs = Lima.needs


async def check(programs: Programs) -> None:
    """Return if Lima and the QEMU that it needs are there, and it does not refuse this user.

    Raises:
        DriverError: Not so. On macOS nobody has tried it yet.
    """
    if sys.platform != "linux" or os.geteuid() == 0:
        raise DriverError(
            "this driver runs only on Linux so far, and not as root",
            hint="`claude-vm doctor` names the driver that this host can use",
        )
    host = this_host(programs)
    programs.need(needs()[0], accelerator.INSTALL_HINT)
    limactl = programs.need(LIMACTL, prerequisites.install_hint(host))
    if not await prerequisites.works(host, limactl):
        raise ToolMissingError(f"{limactl} does not work", hint=prerequisites.install_hint(host))


async def inspect(programs: Programs) -> Inspection:
    """Return what this host has and lacks for it."""
    return await prerequisites.inspect(this_host(programs))


def folders(home: Path) -> Sequence[Path]:
    """Return where its instances are, which is elsewhere where a data folder's path is too long."""
    return (lima_home(home),)


@asynccontextmanager
async def open_driver(owner: Owner, programs: Programs | None = None) -> AsyncIterator[VmDriver]:
    """Open the driver for an owner; leaving the block stops no VM."""
    async with open_vm_driver(Lima(owner), own() if programs is None else programs) as driver:
        yield driver
