"""The floor of a terminal session: asyncssh between a terminal and a guest, with no supervisor between.

A program: ``python -m claude_vm.bench.sims.plainssh ACCESS COMMAND`` on a terminal, ACCESS a JSON file. Raw
bytes both ways, as few steps as the library allows.
"""

import asyncio
import os
import sys
import tty
from pathlib import Path

import asyncssh

from claude_vm.bench.sims.access import read_access
from claude_vm.bench.sims.connection import open_connection
from claude_vm.drivers.api import Access
from claude_vm.supervisor.ssh.process import MAX_PACKET, WINDOW

_CHUNK = 64 * 1024


class _ToTerminal(asyncssh.SSHClientSession[bytes]):
    """Writes what comes to stdout, which blocks; so the library takes no more meanwhile."""

    def data_received(self, data: bytes, datatype: int | None) -> None:  # noqa: ARG002 - the library gives it
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(1, rest) :]


async def _main(access: Access, command: str) -> None:
    connection = await open_connection(
        access.address,
        access.port,
        user=access.user,
        host_key=asyncssh.import_public_key(access.host_key),
        client_key=str(access.client_key),
    )
    async with connection:
        size = os.get_terminal_size(0)
        channel, _ = await connection.create_session(
            _ToTerminal,
            command,
            encoding=None,
            request_pty="force",
            term_type="xterm-256color",
            term_size=(size.columns, size.lines, 0, 0),
            window=WINDOW,
            max_pktsize=MAX_PACKET,
        )
        loop = asyncio.get_running_loop()
        loop.add_reader(0, lambda: channel.write(os.read(0, _CHUNK)))
        try:
            await channel.wait_closed()
        finally:
            loop.remove_reader(0)


if __name__ == "__main__":
    tty.setraw(0)
    asyncio.run(_main(read_access(Path(sys.argv[1])), sys.argv[2]))
