"""Whether this host has room for one more clone; asked right before its disk is made.

The core bounds how many instances there are and how much memory is kept ready. What the host's other programs
have taken, nobody knows before it is measured, and a host that runs out of memory or disk ends sessions that
did nothing wrong. So one that is about to begin is refused, and those that run stay alive.

A clone needs little at first: its disk is an overlay, its memory a private view of the template's. What is
demanded is a margin to begin with, not all that the guest could ever write. Yet a guest with more memory than
the whole host is never right.

What to do is part of these errors' messages: a session's end has a code and a message, no hint.
"""

import os
from pathlib import Path

import psutil

from claude_vm.drivers.api import InstanceSpec
from claude_vm.drivers.errors import DriverError, words_of

DISK_MARGIN_BYTES = 1 << 30
"""Free space that a clone must find, in bytes."""

MEMORY_MARGIN_MIB = 256
"""Available memory that a clone must find at least, in MiB."""

MEMORY_SHARE = 0.1
"""The same as a share of the clone's configured memory; the larger of the two counts."""

MIB = 1 << 20


class DiskFullError(DriverError):
    """There is too little free space where the disks of clones are."""

    code = "disk-full"


class MemoryShortError(DriverError):
    """There is too little available memory."""

    code = "no-memory"


def check_room(
    free_disk_bytes: int, available_memory_mib: int, total_memory_mib: int, spec: InstanceSpec
) -> None:
    """Refuse a clone for which there is no room. Pure.

    `available_memory_mib` is what programs can get without swapping, `total_memory_mib` what the host has,
    both in MiB.

    Raises:
        DiskFullError: Less than `DISK_MARGIN_BYTES` are free.
        MemoryShortError: The host has less memory than the clone is configured for, or less is available than
            `memory_needed_mib`.
    """
    if spec.memory_mib > total_memory_mib:
        raise MemoryShortError(
            f"a VM with {spec.memory_mib} MiB of memory can't run here: this host has {total_memory_mib} MiB;"
            " ask for a smaller VM (--memory)"
        )
    if free_disk_bytes < DISK_MARGIN_BYTES:
        raise DiskFullError(
            f"no room for another VM: {max(free_disk_bytes, 0) // MIB} MiB of disk are free,"
            f" {DISK_MARGIN_BYTES // MIB} MiB are needed; make room, for example among the templates that"
            " `claude-vm list --unused` shows"
        )
    needed = memory_needed_mib(spec.memory_mib)
    if available_memory_mib < needed:
        raise MemoryShortError(
            f"no room for another VM: {max(available_memory_mib, 0)} MiB of memory are available,"
            f" {needed} MiB are needed; end a session (claude-vm stop), give up ready VMs"
            " (claude-vm pool drain --all) or ask for a smaller VM (--memory)"
        )


def memory_needed_mib(memory_mib: int) -> int:
    """Return how much memory must be available, in MiB, for a clone with so much configured memory in MiB."""
    return max(MEMORY_MARGIN_MIB, int(memory_mib * MEMORY_SHARE))


def admit(folder: Path, spec: InstanceSpec) -> None:
    """Measure this host, and refuse a clone for which there is no room. Takes well under a millisecond.

    `folder` is on the file system where the clones' disks are.

    Raises:
        DiskFullError: See `check_room`.
        MemoryShortError: See `check_room`.
        DriverError: The folder can't be looked at.
    """
    try:
        found = os.statvfs(folder)
    except OSError as error:
        raise DriverError(f"the free space of {folder} can't be read", detail=words_of(error)) from error
    memory = psutil.virtual_memory()
    check_room(found.f_bavail * found.f_frsize, memory.available // MIB, memory.total // MIB, spec)
