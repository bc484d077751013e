"""What a guest listens at, as its holder tells it. Nothing of it is believed beyond this session.

The other half is ``drivers/guest/holder``; its opening comment has the protocol. Whoever is root in the
guest can be the holder: frames are small, ports are numbers of ports, and who reads slowly is told no more
than the newest state, because the channel's window holds the teller back.
"""

import asyncio
import struct
from collections.abc import AsyncGenerator
from typing import Annotated

import anyio
import asyncssh
import msgspec

from claude_vm.supervisor.ssh.errors import LinkLostError, ShellError
from claude_vm.supervisor.ssh.link import Link
from claude_vm.supervisor.ssh.stream import ANSWER_S

MOST_PORTS = 256
"""Ports that a guest may tell at a time."""

PAUSE_S = 0.2
"""Least time between two answers that are taken, in seconds."""

_FRAME_LIMIT = 4096
_HEADER = struct.Struct(">cI")
_Ports = Annotated[
    frozenset[Annotated[int, msgspec.Meta(gt=0, lt=1 << 16)]], msgspec.Meta(max_length=MOST_PORTS)
]


async def listening_ports(link: Link) -> AsyncGenerator[frozenset[int], None]:
    """Yield the TCP ports that the guest listens at, on all its addresses or its loopback, at each change.

    The first answer comes at once. Ends never by itself.

    Raises:
        ShellError: The holder does not say, or sends invalid data.
        LinkLostError: The connection is lost.
    """
    try:
        with anyio.fail_after(ANSWER_S):
            reader, writer = await link.open_dialogue()
    except TimeoutError:
        raise ShellError(f"the guest opens no stream within {ANSWER_S:g} s") from None
    try:
        writer.write(_HEADER.pack(b"N", 0))
        while True:
            yield await _next_answer(reader)
            await anyio.sleep(PAUSE_S)
    except (asyncio.IncompleteReadError, asyncssh.Error, OSError) as error:
        raise LinkLostError("the guest's holder ended the stream", detail=str(error)) from error
    finally:
        writer.channel.abort()


async def _next_answer(reader: "asyncssh.SSHReader[bytes]") -> frozenset[int]:
    letter, length = _HEADER.unpack(await reader.readexactly(_HEADER.size))
    if length > _FRAME_LIMIT or letter not in {b"N", b"!"}:
        raise ShellError("the guest's holder sent invalid data")
    payload = await reader.readexactly(length)
    if letter == b"!":
        raise ShellError("the guest does not say at which ports it listens")
    try:
        return msgspec.json.decode(payload, type=_Ports)
    except msgspec.MsgspecError as error:
        raise ShellError("the guest's holder sent invalid data") from error
