"""Reading what a guest says: its processes, and its holder."""

import json

import anyio

from claude_vm.drivers.guest.holder.frames import encode, next_frame
from claude_vm.supervisor.ssh.shells import HeldProcess


async def whole(read):
    data = b""
    while part := await read(65536):
        data += part
    return data


async def until(process, text):
    data = b""
    with anyio.fail_after(20):
        while text not in data:
            part = await process.read_stdout(65536)
            assert part, data
            data += part
    return data


async def held_sessions(link):
    """Return what the guest's holder tells of each session that it has, by its id."""
    reader, writer = await link.open_dialogue()
    writer.write(encode(b"L"))
    said = bytearray()
    while (frame := next_frame(said)) is None:
        part = await reader.read(65536)
        assert part, said
        said += part
    writer.close()
    return {row["session"]: row for row in json.loads(frame[1])}


async def attach(link, session_id):
    """Go on with a session that runs already."""
    process = HeldProcess.found(session_id)
    await process.attach(link)
    return process
