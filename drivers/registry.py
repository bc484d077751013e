"""Which drivers there are, each declared once; and which of them a command means."""

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final, Protocol

import msgspec

from claude_vm.drivers.api import Driver, Inspection, Owner
from claude_vm.drivers.errors import DriverError
from claude_vm.drivers.programs import Programs, own


class DriverModule(Protocol):
    """What a driver's own module offers before the driver is open."""

    def needs(self) -> Sequence[str]:
        """Return the names of the programs without which no VM starts.

        Raises:
            DriverError: It does nothing for a host such as this one.
        """
        ...

    async def check(self, programs: Programs) -> None:
        """Return if ``auto`` may mean it where these programs are.

        Raises:
            DriverError: It may not: something is missing.
        """
        ...

    async def inspect(self, programs: Programs) -> Inspection:
        """Return what this host has and lacks for it. Never raises."""
        ...

    def folders(self, home: Path) -> Sequence[Path]:
        """Return where it keeps what belongs to a data folder and lies elsewhere. It may be missing."""
        ...

    def open_driver(self, owner: Owner, programs: Programs) -> AbstractAsyncContextManager[Driver]:
        """Open it for an owner; leaving the block stops no VM. `programs` are where it looks at first."""
        ...


class Declaration(msgspec.Struct, frozen=True):
    """A driver, as far as it can be told before its module, which is heavy, is loaded.

    `words` say what it is, for people who choose. One that does not isolate is never what ``auto`` means.
    """

    words: str
    load: Callable[[], DriverModule]
    isolates: bool = True


def _lima() -> DriverModule:
    from claude_vm.drivers.lima import driver  # noqa: PLC0415

    return driver


def _qemu() -> DriverModule:
    from claude_vm.drivers.qemu import driver  # noqa: PLC0415

    return driver


def _sim() -> DriverModule:
    from claude_vm.drivers.sim import driver  # noqa: PLC0415

    return driver


DRIVERS: Final = {
    "lima": Declaration("Lima", _lima),
    "qemu": Declaration("QEMU", _qemu),
    "sim": Declaration("simulated VMs, which isolate nothing", _sim, isolates=False),
}
"""All drivers by name, in the order in which ``auto`` prefers them. One is there even when this host can't
use it: it may have left something to sweep."""

AUTO: Final = "auto"
"""The best one that this host can use."""

ISOLATING: Final = tuple(name for name, driver in DRIVERS.items() if driver.isolates)
"""Drivers whose guests can't hurt the host."""


def find(name: str) -> DriverModule:
    """Return the module of a driver.

    Raises:
        DriverError: There is no such driver.
    """
    check(name)
    return DRIVERS[name].load()


def check(name: str) -> None:
    """Refuse a name that no setting can have.

    Raises:
        DriverError: There is no such driver.
    """
    if name != AUTO and name not in DRIVERS:
        known = ", ".join([AUTO, *DRIVERS])
        raise DriverError(f"there is no driver '{name}'", hint=f"the drivers are: {known}")


async def usable(programs: Programs) -> list[str]:
    """Return the drivers that ``auto`` may mean where these programs are, the preferred one first.

    Raises:
        DriverError: There is none; this is what the last one, which needs the least, lacks.
    """
    found: list[str] = []
    lacking: DriverError | None = None
    for name in ISOLATING:
        try:
            await find(name).check(programs)
        except DriverError as error:
            lacking = error
        else:
            found.append(name)
    if not found and lacking is not None:
        raise lacking
    return found


def folders(home: Path) -> list[Path]:
    """Return where drivers keep what belongs to a data folder and lies elsewhere. It may be missing."""
    return [folder for name in DRIVERS for folder in find(name).folders(home)]


@contextlib.asynccontextmanager
async def open_driver(name: str, owner: Owner, programs: Programs | None = None) -> AsyncIterator[Driver]:
    """Open a driver by its name, for as long as the block lasts.

    It looks for its programs in `programs` until it is told others; without any, where this process would.

    Raises:
        DriverError: There is no such driver.
    """
    async with find(name).open_driver(owner, own() if programs is None else programs) as driver:
        yield driver
