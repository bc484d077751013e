"""The QEMU driver: VMs of a QEMU that we start ourselves."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from claude_vm.drivers.api import Owner
from claude_vm.drivers.programs import Programs, own
from claude_vm.drivers.qemu.hypervisor import Qemu
from claude_vm.drivers.vm.driver import VmDriver, open_vm_driver


@asynccontextmanager
async def open_driver(owner: Owner, programs: Programs | None = None) -> AsyncIterator[VmDriver]:
    """Open the driver for an owner; leaving the block stops no VM."""
    try:
        async with open_vm_driver(Qemu(owner), own() if programs is None else programs) as driver:
            yield driver
    finally:
        with suppress(OSError):  # it has instances, or never had one
            (owner.home / "instances" / owner.supervisor_id).rmdir()
