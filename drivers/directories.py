"""A host directory that is to be mounted, opened as the one that was meant and no other.

A path is only a name: between the moment somebody looks at it and the moment it is opened, another directory
may have come to bear it.
"""

import os
from typing import Final

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
            f"{mount.host} is another directory than the one to be mounted",
            hint="it was replaced meanwhile; start the session again",
        )
    return descriptor
