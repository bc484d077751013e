"""The QEMU driver: VMs of a QEMU that we start ourselves."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from claude_vm.drivers.api import Inspection, Owner
from claude_vm.drivers.prerequisites import hypervisor, template_tools, this_host
from claude_vm.drivers.programs import Programs, own
from claude_vm.drivers.qemu.hypervisor import Qemu
from claude_vm.drivers.vm.accelerator import INSTALL_HINT
from claude_vm.drivers.vm.driver import VmDriver, open_vm_driver

needs = Qemu.needs


async def check(programs: Programs) -> None:
    """Return if this QEMU is installed.

    Raises:
        ToolMissingError: It is not.
        DriverError: We have no machine for this architecture.
    """
    programs.need(needs()[0], INSTALL_HINT)


async def inspect(programs: Programs) -> Inspection:
    """Return what this host has and lacks for it."""
    host = this_host(programs)
    installed = host.which(f"qemu-system-{host.machine}") is not None
    return Inspection(installed, problems=(*hypervisor(host), *template_tools(host)))


def folders(home: Path) -> Sequence[Path]:  # noqa: ARG001 - the signature is every driver's
    """Return nothing: all is in the data folder."""
    return ()


@asynccontextmanager
async def open_driver(owner: Owner, programs: Programs | None = None) -> AsyncIterator[VmDriver]:
    """Open the driver for an owner; leaving the block stops no VM."""
    try:
        async with open_vm_driver(Qemu(owner), own() if programs is None else programs) as driver:
            yield driver
    finally:
        with suppress(OSError):  # it has instances, or never had one
            (owner.home / "instances" / owner.supervisor_id).rmdir()
