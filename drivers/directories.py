"""Host directories in which others are at work too: those that are mounted, and those that are removed.

A path is only a name: between the moment somebody looks at it and the moment it is opened, another directory
may have come to bear it, or nothing.
"""

import os
import shutil
from pathlib import Path
from typing import Any, Final

from claude_vm.drivers.api import Mount
from claude_vm.drivers.errors import MountChangedError

# Where there is O_PATH, a directory that can't be read by us can still be handed on.
_FLAGS: Final = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC


def open_directory(mount: Mount) -> int:
    """Return a descriptor of the mount's host directory; the caller closes it. It is good for a name only.

    Raises:
        MountChangedError: It is not there, or another one than `mount` has the identity of.
    """
    try:
        descriptor = os.open(mount.host, _FLAGS)
    except OSError as error:
        raise MountChangedError(f"{mount.host} can't be mounted: {error.strerror}") from error
    found = os.fstat(descriptor)
    if mount.inode and (found.st_dev, found.st_ino) != (mount.device, mount.inode):
        os.close(descriptor)
        raise MountChangedError(
            f"{mount.host} is no longer the directory that was to be mounted",
            hint="it was replaced meanwhile; start the session again",
        )
    return descriptor


def remove_tree(folder: Path) -> None:
    """Remove a folder that may be gone, and of which others may remove something at the same time.

    A program that is killed may have children that clean up after it, as Lima's host agent does.

    Raises:
        OSError: Something can't be removed, or something new has come.
    """
    shutil.rmtree(folder, onerror=_unless_gone)


def _unless_gone(_function: Any, _path: Any, info: Any) -> None:
    """Be the ``onerror`` of `shutil.rmtree` that takes what is gone for removed, and goes on."""
    if not isinstance(info[1], FileNotFoundError):
        raise info[1]
