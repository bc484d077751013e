"""Who is at the other end of a unix socket, as the kernel knows it."""

import socket
import struct
import sys

_LINUX_CREDENTIALS = struct.Struct("3i")
"""pid, uid, gid. Source: unix(7), SO_PEERCRED."""

_BSD_CREDENTIALS = struct.Struct("2I h 16I")
"""Version, uid, number of groups, groups. Source: macOS <sys/ucred.h>, struct xucred."""

_SOL_LOCAL = 0
_LOCAL_PEERCRED = 1


def peer_uid(connection: socket.socket) -> int | None:
    """Return the user id of the process that connected, or None where the system does not tell.

    Raises:
        OSError: The connection is gone.
    """
    if sys.platform == "linux":
        data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _LINUX_CREDENTIALS.size)
        return int(_LINUX_CREDENTIALS.unpack(data)[1])
    elif sys.platform == "darwin":  # noqa: RET505 - so that type checkers skip the other systems' branches
        data = connection.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, _BSD_CREDENTIALS.size)
        return int(struct.unpack_from("I", data, 4)[0])
    else:
        return None
