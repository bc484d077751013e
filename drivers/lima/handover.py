"""The socket from which a QEMU that Lima starts gets what it needs.

What comes there is `claude_vm.drivers.vm.confine`, which becomes QEMU: its process is known before QEMU runs.
"""

import socket
import struct
from collections.abc import Sequence
from typing import Final

import anyio
import msgspec

from claude_vm.drivers.errors import DriverError
from claude_vm.drivers.process import ProcessIdentity

_PEER: Final = getattr(socket, "SO_PEERCRED", 17)
_PEER_FORMAT: Final = "3i"


class Order(msgspec.Struct, frozen=True):
    """What QEMU gets: arguments, and the numbers that the descriptors shall have there."""

    numbers: tuple[int, ...]
    arguments: tuple[str, ...]


async def hand_over(listener: socket.socket, order: Order, descriptors: Sequence[int]) -> ProcessIdentity:
    """Wait for QEMU's process to connect, give it what it needs, and return it.

    Raises:
        DriverError: It ended before.
    """
    listener.setblocking(False)
    await anyio.wait_readable(listener)
    connection, _ = listener.accept()
    with connection:
        connection.setblocking(True)
        credentials = connection.getsockopt(socket.SOL_SOCKET, _PEER, struct.calcsize(_PEER_FORMAT))
        identity = ProcessIdentity.of(struct.unpack(_PEER_FORMAT, credentials)[0])
        try:
            data = memoryview(msgspec.json.encode(order))
            sent = socket.send_fds(connection, [data], list(descriptors))
            connection.sendall(data[sent:])
        except OSError as error:
            raise DriverError("QEMU ended before it started", detail=str(error)) from error
    if identity is None:
        raise DriverError("QEMU ended before it started")
    return identity
