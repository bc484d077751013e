"""Deliberate faults, for tests only: the environment variable ``CLAUDE_VM_FAULT`` chooses where and which.

Its value is ``MOMENT[#NUMBER]=ACTION``, several of them separated by commas. The fault happens when this
supervisor comes to the moment for the NUMBERth time (1, where none is given).

Moments: ``begun:KIND`` (the journal's row is written, nothing else), ``before:KIND`` and ``after:KIND`` (the
work is done, the answer neither written nor taken) for each KIND of effect (clone, prestart, start, connect,
run, delete), ``before:prime`` and ``after:run-started``. Actions: ``kill-self`` (SIGKILL for this
supervisor), ``kill-vm`` (SIGKILL for the instance's VM, where the driver tells its process), ``cut-link``
(its connection ends, where there is one) and ``raise`` (the step fails with the code ``injected-fault``). At
``begun`` only ``kill-self`` does something, and ``after:run-started`` can't fail.

Without the variable nothing of this is ever called.
"""

import os
import re
import signal
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, cast

import structlog

from claude_vm.drivers.api import Driver
from claude_vm.drivers.errors import DriverError
from claude_vm.supervisor.ssh.link import Link

log = structlog.get_logger()

VARIABLE: Final = "CLAUDE_VM_FAULT"

KINDS: Final = ("clone", "prestart", "start", "connect", "run", "delete")
MOMENTS: Final = frozenset(
    {f"{when}:{kind}" for when in ("begun", "before", "after") for kind in KINDS}
    | {"before:prime", "after:run-started"}
)

Action = Literal["kill-self", "kill-vm", "cut-link", "raise"]
_ACTIONS: Final = ("kill-self", "kill-vm", "cut-link", "raise")
_FAULT: Final = re.compile(r"([a-z]+:[a-z-]+)(?:#([1-9][0-9]*))?=([a-z-]+)")


class InjectedFaultError(DriverError):
    """A step fails because a test wants it to."""

    code = "injected-fault"


class Fault(NamedTuple):
    """One fault: at which occurrence of which moment what happens."""

    moment: str
    number: int
    action: Action


class Faults:
    """The faults that are still to come."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        self._faults = faults
        self._seen: dict[str, int] = {}

    def due(self, moment: str, instance_id: str) -> Action | None:
        """Count a moment; return what has to happen now. ``kill-self`` happens here, and nothing after it."""
        number = self._seen[moment] = self._seen.get(moment, 0) + 1
        for fault in self._faults:
            if (fault.moment, fault.number) == (moment, number):
                log.warning("fault", moment=moment, number=number, action=fault.action, instance=instance_id)
                if fault.action == "kill-self":
                    os.kill(os.getpid(), signal.SIGKILL)
                return fault.action
        return None

    async def inject(self, moment: str, instance_id: str, driver: Driver, link: Link | None = None) -> None:
        """Come to a moment, and do what is due.

        Raises:
            InjectedFaultError: That is due.
        """
        action = self.due(moment, instance_id)
        if action == "raise":
            raise InjectedFaultError(f"a fault was asked for at {moment}")
        await inflict(action, instance_id, driver, link)


async def inflict(action: Action | None, instance_id: str, driver: Driver, link: Link | None) -> None:
    """Do to an instance what is due, if that is something that can be done to it."""
    if action == "kill-vm":
        await kill_vm(instance_id, driver)
    elif action == "cut-link" and link is not None:
        link.cut()


async def kill_vm(instance_id: str, driver: Driver) -> None:
    """Kill an instance's VM, if it has a process of its own."""
    for record in await driver.list_instances():
        if record.instance_id == instance_id and record.pid is not None:
            os.kill(record.pid, signal.SIGKILL)


def read_faults(environ: Mapping[str, str]) -> Faults | None:
    """Return the faults that the environment asks for; None: there are none.

    Raises:
        ValueError: It asks for something that does not exist.
    """
    text = environ.get(VARIABLE, "")
    return Faults(tuple(_read(part) for part in text.split(","))) if text else None


def _read(text: str) -> Fault:
    found = _FAULT.fullmatch(text.strip())
    if found is None or found[1] not in MOMENTS or found[3] not in _ACTIONS:
        raise ValueError(f"{VARIABLE}='{text}' is not a fault; write it as MOMENT[#NUMBER]=ACTION")
    return Fault(found[1], int(found[2] or 1), cast("Action", found[3]))
