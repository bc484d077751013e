"""Which driver: by name, or the best that this host has."""

import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from claude_vm.drivers.api import Driver, Owner
from claude_vm.drivers.errors import DriverError
from claude_vm.drivers.programs import Programs, own

ISOLATING: Final = ("lima", "qemu")
"""Drivers whose guests can't hurt the host, in the order in which ``auto`` prefers them."""

ALL: Final = (*ISOLATING, "sim")
"""All drivers. One is there even when this host can't use it: it may have left something to sweep."""

NAMES: Final = ("auto", *ALL)


async def usable(programs: Programs) -> list[str]:
    """Return the drivers that ``auto`` may mean where these programs are, the preferred one first.

    That is never ``sim``, which isolates nothing.

    Raises:
        ToolMissingError: Nothing that it could mean is installed.
    """
    # The import is left to here because drivers are heavy, and most commands need only a name.
    from claude_vm.drivers.prerequisites.lima import works  # noqa: PLC0415
    from claude_vm.drivers.prerequisites.programs import this_host  # noqa: PLC0415
    from claude_vm.drivers.vm.accelerator import INSTALL_HINT, architecture  # noqa: PLC0415

    programs.need(f"qemu-system-{architecture()}", INSTALL_HINT)
    # Lima needs QEMU too, and refuses to be run by root. On macOS nobody has tried it yet.
    limactl = programs.find("limactl") if sys.platform == "linux" and os.geteuid() != 0 else None
    has_lima = limactl is not None and await works(this_host(programs), limactl)
    return [name for name in ISOLATING if name != "lima" or has_lima]


def programs_of(name: str) -> Sequence[str]:
    """Return the names of the programs that a driver can't do without.

    Raises:
        DriverError: We have no machine for this architecture.
    """
    from claude_vm.drivers.vm.accelerator import programs  # noqa: PLC0415 - as above

    return {"lima": (*programs(), "limactl"), "qemu": programs()}.get(name, ())


def folders(home: Path) -> Sequence[Path]:
    """Return where drivers keep what belongs to a data folder, in it or elsewhere. It may be missing."""
    from claude_vm.drivers.lima.home import lima_home  # noqa: PLC0415 - as above

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
    chosen = (await usable(programs))[0] if name == "auto" else name
    if chosen == "sim":
        from claude_vm.drivers.sim.driver import open_driver as open_sim  # noqa: PLC0415

        async with open_sim(owner) as driver:
            yield driver
    elif chosen == "lima":
        from claude_vm.drivers.lima.driver import open_driver as open_lima  # noqa: PLC0415

        async with open_lima(owner, programs) as driver:
            yield driver
    else:
        from claude_vm.drivers.qemu.driver import open_driver as open_qemu  # noqa: PLC0415

        async with open_qemu(owner, programs) as driver:
            yield driver
