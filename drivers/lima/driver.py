"""The Lima driver: VMs that `limactl` starts."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from claude_vm.drivers.api import Owner
from claude_vm.drivers.lima.hypervisor import Lima
from claude_vm.drivers.programs import Programs, own
from claude_vm.drivers.vm.driver import VmDriver, open_vm_driver


@asynccontextmanager
async def open_driver(owner: Owner, programs: Programs | None = None) -> AsyncIterator[VmDriver]:
    """Open the driver for an owner; leaving the block stops no VM."""
    async with open_vm_driver(Lima(owner), own() if programs is None else programs) as driver:
        yield driver
