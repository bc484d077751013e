"""Which driver: by name, or the best that this host has."""

import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from claude_vm.drivers.api import Driver, Owner
from claude_vm.drivers.errors import DriverError, ToolMissingError

ISOLATING: Final = ("lima", "qemu")
"""Drivers whose guests can't hurt the host, in the order in which ``auto`` takes them."""

ALL: Final = (*ISOLATING, "sim")
"""All drivers. One is there even when this host can't use it: it may have left something to sweep."""

NAMES: Final = ("auto", *ALL)


async def choose(name: str) -> str:
    """Return the name of the driver that is meant; ``auto`` never means ``sim``, which isolates nothing.

    Raises:
        ToolMissingError: Nothing that ``auto`` could mean is installed.
        DriverError: There is no such driver.
    """
    if name not in NAMES:
        raise DriverError(f"there is no driver '{name}'", hint=f"known are: {', '.join(NAMES)}")
    if name != "auto":
        return name
    # The import is left to here because drivers are heavy, and most commands need only a name.
    from claude_vm.drivers.prerequisites.lima import works  # noqa: PLC0415
    from claude_vm.drivers.vm.accelerator import INSTALL_HINT, architecture  # noqa: PLC0415

    if shutil.which(f"qemu-system-{architecture()}") is None:
        raise ToolMissingError("no hypervisor is installed", hint=INSTALL_HINT)
    # Lima needs QEMU too, and refuses to be run by root. On macOS nobody has tried it yet.
    limactl = shutil.which("limactl") if sys.platform == "linux" and os.geteuid() != 0 else None
    return "lima" if limactl is not None and await works(limactl) else "qemu"


@asynccontextmanager
async def open_driver(name: str, owner: Owner) -> AsyncIterator[Driver]:
    """Open a driver by its name, for as long as the block lasts.

    Raises:
        DriverError: There is no such driver, or nothing is installed that ``auto`` could mean.
    """
    chosen = await choose(name)
    if chosen == "sim":
        from claude_vm.drivers.sim.driver import open_driver as open_sim  # noqa: PLC0415

        async with open_sim(owner) as driver:
            yield driver
    elif chosen == "lima":
        from claude_vm.drivers.lima.driver import open_driver as open_lima  # noqa: PLC0415

        async with open_lima(owner) as driver:
            yield driver
    else:
        from claude_vm.drivers.qemu.driver import open_driver as open_qemu  # noqa: PLC0415

        async with open_qemu(owner) as driver:
            yield driver
