"""Connections from this host to a guest's ports, through its SSH connection.

The library's own forwarding keeps without bound what a client sends before the guest has answered, knows no
limit to connections, and ends a refused one like one that was served. So only its channels are used: nothing
is read from a client before there is somebody to pass it on to, what is on the way is bounded in both
directions, and whoever can't be served is reset, as by a host where nobody listens. So a transfer does not
hold up the session's terminal, which shares the connection, for long.

The clients' sockets are used as they are: anyio's streams read ahead without bound until their reader has
had to wait once.
"""

import contextlib
import socket
import struct

import anyio
import anyio.lowlevel
import asyncssh

from claude_vm.drivers.tasks import open_tasks
from claude_vm.supervisor.ssh.errors import SshError
from claude_vm.supervisor.ssh.link import Link

OPEN_S = 20.0
"""How long the guest may take to open a connection, in seconds, under software emulation."""

CHUNK = 64 * 1024
"""Bytes a step."""


async def carry(link: Link | None, client: socket.socket, port: int) -> None:
    """Carry one client's connection to a guest's port until both directions have ended; close it.

    `client` does not block. Each direction ends by itself. Without a link, or where the guest does not
    listen, the client is reset. Cancelled: both sides are cut off.
    """
    served = False
    try:
        if link is not None:
            with anyio.fail_after(OPEN_S):
                reader, writer = await link.open_tcp(port)
            try:
                await _exchange(link, client, reader, writer)
                served = True
            finally:
                # What was not taken by now never will be.
                writer.channel.abort()
    except (SshError, TimeoutError):
        pass
    finally:
        if not served:
            _reset(client)
        client.close()


async def _exchange(
    link: Link,
    client: socket.socket,
    reader: "asyncssh.SSHReader[bytes]",
    writer: "asyncssh.SSHWriter[bytes]",
) -> None:
    """Carry both directions to their ends.

    Raises:
        SshError: Either side breaks off.
    """

    async def upwards() -> None:
        while data := await _receive(client):
            await link.until_it_takes()
            writer.write(data)
            await writer.drain()
        writer.write_eof()

    try:
        async with open_tasks() as directions:
            directions.start_soon(upwards)
            while data := await reader.read(CHUNK):
                await _send(client, data)
            client.shutdown(socket.SHUT_WR)
            # The guest closes its side when both directions have ended, or when it takes no more.
            await writer.channel.wait_closed()
            directions.cancel_scope.cancel()
    except (OSError, asyncssh.Error) as error:
        raise SshError("the connection was broken off", detail=str(error)) from error


async def _receive(client: socket.socket) -> bytes:
    """Return what there is, empty at the end. Others get their turn each time."""
    await anyio.lowlevel.checkpoint()
    while True:
        try:
            return client.recv(CHUNK)
        except BlockingIOError:
            await anyio.wait_readable(client)


async def _send(client: socket.socket, data: bytes) -> None:
    await anyio.lowlevel.checkpoint()
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[client.send(rest) :]
        except BlockingIOError:
            await anyio.wait_writable(client)


def _reset(client: socket.socket) -> None:
    """Let the client see a reset, not an end, when its connection is closed."""
    with contextlib.suppress(OSError):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
