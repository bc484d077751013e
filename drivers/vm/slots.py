"""The mounts' directories as QEMU gets them: opened here, and handed to it under names nobody can change.

QEMU opens what its slots name when it starts. On Linux that is one of its own descriptors, so it opens the
very directory that was checked; elsewhere there is no such name, and the path is checked right before.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import msgspec

from claude_vm.drivers.api import Mount
from claude_vm.drivers.directories import open_directory
from claude_vm.drivers.vm.arguments import Slot


def slot_of(mount: Mount) -> Slot:
    """Return the slot for a mount."""
    return Slot(mount.host, mount.writable, mount.device, mount.inode)


@contextmanager
def opened(slots: Sequence[Slot], first: int) -> Iterator[tuple[tuple[Slot, ...], list[tuple[int, int]]]]:
    """Open the slots' directories for as long as the block lasts.

    Yields the slots as QEMU shall see them, and the descriptors to give to it, each with its number there:
    `first` and those that follow.

    Raises:
        MountChangedError: One is another directory than was meant, or gone.
    """
    with ExitStack() as stack:
        given = []
        for number, slot in enumerate(slots, first):
            mount = Mount(slot.path, "", slot.writable, slot.device, slot.inode)
            descriptor = open_directory(mount)
            stack.callback(os.close, descriptor)
            given.append((descriptor, number))
        if sys.platform != "linux":
            yield tuple(slots), []
            return
        named = [
            msgspec.structs.replace(slot, path=f"/proc/self/fd/{number}")
            for slot, (_, number) in zip(slots, given, strict=True)
        ]
        yield tuple(named), given
