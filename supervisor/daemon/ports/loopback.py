"""Listening sockets on this host's loopback, and nowhere else."""

import errno
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import anyio.abc

from claude_vm.context.ports import LOWEST

ADDRESSES = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))

BACKLOG = 128

TRIES = 8
"""How often a free port is looked for that is free on both addresses."""

ROOM_S = 0.1
"""Pause, in seconds, when there is no room for one more connection."""

_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_NO_SUCH_ADDRESS = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT})


def listen(port: int) -> list[socket.socket]:
    """Listen at a port of 127.0.0.1, and of ::1 where that exists: `localhost` may mean either.

    Raises:
        OSError: Another program has the port, on either address.
        ValueError: No session may have this port.
    """
    if port < LOWEST:
        raise ValueError(port)
    return _listen(port)


def listen_anywhere() -> list[socket.socket]:
    """Listen at a port that the system chooses; likewise.

    Raises:
        OSError: There is none.
    """
    for attempt in range(TRIES):
        first = _socket(*ADDRESSES[0], 0)
        try:
            port = first.getsockname()[1]
            return [first, *_listen(port, ADDRESSES[1:])] if port >= LOWEST else []
        except OSError as error:
            first.close()
            if error.errno != errno.EADDRINUSE or attempt == TRIES - 1:
                raise
    raise AssertionError  # pragma: no cover - the last attempt returns or raises


async def serve(
    listener: socket.socket,
    serve_client: Callable[[socket.socket], Coroutine[Any, Any, None]],
    tasks: anyio.abc.TaskGroup,
) -> None:
    """Call `serve_client` in a task of the group for each connection, which does not block. Never ends.

    `serve_client` closes the connection.
    """
    while True:
        await anyio.wait_readable(listener)
        try:
            client, _ = listener.accept()
        except OSError as error:
            if error.errno in _NO_ROOM:
                await anyio.sleep(ROOM_S)  # it stays in the queue
            continue  # else it has gone again
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tasks.start_soon(serve_client, client)


def _listen(
    port: int, addresses: tuple[tuple[socket.AddressFamily, str], ...] = ADDRESSES
) -> list[socket.socket]:
    found: list[socket.socket] = []
    try:
        for family, address in addresses:
            try:
                found.append(_socket(family, address, port))
            except OSError as error:
                if family != socket.AF_INET6 or error.errno not in _NO_SUCH_ADDRESS:
                    raise
    except BaseException:
        for each in found:
            each.close()
        raise
    return found


def _socket(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    """Return a listening socket. What an ended connection left of a port does not keep it from us."""
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((address, port))
        made.listen(BACKLOG)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made
