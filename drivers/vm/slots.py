"""What QEMU inherits from us: its sockets, and the mounts' directories, under names that nobody can change.

QEMU opens what its slots name when it starts. On Linux that is one of its own descriptors, so it opens the
very directory that was checked; elsewhere there is no such name, and the path is checked right before.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

import msgspec

from claude_vm.drivers.api import Mount
from claude_vm.drivers.directories import open_directory
from claude_vm.drivers.vm.arguments import VmPlan
from claude_vm.drivers.vm.machine import Files
from claude_vm.drivers.vm.spawn import listen

_MONITOR_FD: Final = 10
_HELPER_FD: Final = 11
_SLOTS_FD: Final = 12


@contextmanager
def inherited(guest: VmPlan, files: Files) -> Iterator[tuple[VmPlan, list[tuple[int, int]]]]:
    """Open for a VM's QEMU what it gets as descriptors, for as long as the block lasts.

    Yields the VM as that QEMU has to be told of it, and the descriptors, each with its number there.

    Raises:
        MountChangedError: A slot's directory is another one than was meant, or gone.
        DriverError: A socket's path is taken or too long.
    """
    with (
        _opened(guest.slots) as (slots, directories),
        listen(files.monitor) as monitor,
        listen(files.helper) as helper,
    ):
        told = msgspec.structs.replace(
            guest,
            serial=str(files.serial),
            empty=str(files.empty),
            monitor=_MONITOR_FD,
            helper=_HELPER_FD,
            slots=slots,
        )
        yield told, [(monitor.fileno(), _MONITOR_FD), (helper.fileno(), _HELPER_FD), *directories]


@contextmanager
def _opened(slots: Sequence[Mount]) -> Iterator[tuple[tuple[Mount, ...], list[tuple[int, int]]]]:
    """Open the slots' directories for as long as the block lasts.

    Yields the slots as QEMU shall see them, and the descriptors to give to it, each with its number there.

    Raises:
        MountChangedError: One is another directory than was meant, or gone.
    """
    with ExitStack() as stack:
        given = []
        for number, slot in enumerate(slots, _SLOTS_FD):
            descriptor = open_directory(slot)
            stack.callback(os.close, descriptor)
            given.append((descriptor, number))
        if sys.platform != "linux":
            yield tuple(slots), []
            return
        named = [
            msgspec.structs.replace(slot, host=f"/proc/self/fd/{number}")
            for slot, (_, number) in zip(slots, given, strict=True)
        ]
        yield tuple(named), given
