"""Connections from this host to a guest's ports, through its SSH connection.

The library's own forwarding keeps without bound what a client sends before the guest has answered, knows no
limit to connections, and ends a refused one like one that was served. So only its channels are used: nothing
is read from a client before there is somebody to pass it on to, what is on the way is bounded by a window,
and whoever can't be served is reset, as by a host where nobody listens.
"""

import contextlib
import socket
import struct

import anyio
import anyio.abc
import asyncssh

from claude_vm.supervisor.ssh.errors import SshError
from claude_vm.supervisor.ssh.link import Link

OPEN_S = 20.0
"""How long the guest may take to open a connection, in seconds, under software emulation."""

CHUNK = 64 * 1024
"""Bytes a step."""


async def carry(link: Link | None, client: anyio.abc.SocketStream, port: int) -> None:
    """Carry one client's connection to a guest's port until both directions have ended; close it.

    Each direction ends by itself. Without a link, or where the guest does not listen, the client is reset.
    Cancelled: both sides are cut off.
    """
    served = False
    try:
        if link is not None:
            with anyio.fail_after(OPEN_S):
                reader, writer = await link.open_tcp(port)
            try:
                await _exchange(client, reader, writer)
                served = True
            finally:
                # What was not taken by now never will be.
                writer.channel.abort()
    except (SshError, TimeoutError):
        pass
    finally:
        if not served:
            _reset(client)
        with anyio.CancelScope(shield=True):
            await client.aclose()


async def _exchange(
    client: anyio.abc.SocketStream,
    reader: "asyncssh.SSHReader[bytes]",
    writer: "asyncssh.SSHWriter[bytes]",
) -> None:
    """Carry both directions to their ends. Raises an `SshError` when either side breaks off."""
    broken: list[Exception] = []

    async with anyio.create_task_group() as directions:

        async def upwards() -> None:
            try:
                while True:
                    data = await client.receive(CHUNK)
                    writer.write(data)
                    await writer.drain()
            except anyio.EndOfStream:
                writer.write_eof()
            except (anyio.BrokenResourceError, OSError, asyncssh.Error) as error:
                broken.append(error)
                directions.cancel_scope.cancel()

        directions.start_soon(upwards)
        try:
            while data := await reader.read(CHUNK):
                await client.send(data)
            await client.send_eof()
            # The guest closes its side when both directions have ended, or when it takes no more.
            await writer.channel.wait_closed()
        except (anyio.BrokenResourceError, OSError, asyncssh.Error) as error:
            broken.append(error)
        directions.cancel_scope.cancel()
    if broken:
        raise SshError("the connection was broken off", detail=str(broken[0]))


def _reset(client: anyio.abc.SocketStream) -> None:
    """Let the client see a reset, not an end, when its connection is closed."""
    with contextlib.suppress(OSError):
        raw = client.extra(anyio.abc.SocketAttribute.raw_socket)  # noqa: S610 - Django's is another one
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
