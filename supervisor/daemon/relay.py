"""Between a client's streams and a guest process: lossless, with back-pressure from end to end.

Each direction is one loop that takes a piece only when the former one was passed on. So a reader that stops
stops the guest's writer: the client's window fills, this loop waits, the SSH channel's window fills.
"""

from collections.abc import Awaitable, Callable

import anyio

from claude_vm.supervisor.ssh.errors import InputClosedError, SshError
from claude_vm.supervisor.ssh.process import GuestProcess
from claude_vm.supervisor.wire.server import Client, OutputClosedError

CHUNK = 64 * 1024
"""Bytes a step. One frame of the protocol."""

SIGPIPE_STATUS = 141

DRAIN_S = 0.5
"""How long output may be silent, in seconds, once the main command has ended. Something it left in the
background may hold the streams open; what the command itself wrote is in the channel by then."""


class _Outputs:
    """The two output loops, and whether one of them waits for the guest (not for the client)."""

    def __init__(self, client: Client, process: GuestProcess, on_output: Callable[[], None]) -> None:
        self._client = client
        self._process = process
        self._on_output = on_output
        self._reading = 0
        self.left = 2
        self.closed = False
        self.moved = anyio.Event()

    async def pump_stdout(self) -> None:
        """Carry stdout until its end."""
        await self._pump(self._process.read_stdout, self._client.send_stdout)

    async def pump_stderr(self) -> None:
        """Carry stderr until its end."""
        await self._pump(self._process.read_stderr, self._client.send_stderr)

    async def _pump(
        self, read: Callable[[int], Awaitable[bytes]], write: Callable[[bytes], Awaitable[None]]
    ) -> None:
        try:
            while True:
                self._reading += 1
                try:
                    data = await read(CHUNK)
                finally:
                    self._reading -= 1
                if not data:
                    return
                self._on_output()
                self._stir()
                await write(data)
        except OutputClosedError:
            self.closed = True
        finally:
            self.left -= 1
            self._stir()

    def _stir(self) -> None:
        self.moved.set()
        self.moved = anyio.Event()

    async def drained(self) -> None:
        """Wait until both streams ended, or nothing comes any more. For use after the command's end."""
        while self.left:
            with anyio.move_on_after(DRAIN_S) as silence:
                await self.moved.wait()
            if silence.cancelled_caught and self._reading == self.left:
                return

    async def until_closed(self) -> None:
        """Wait until the client's reader of an output is gone."""
        while not self.closed:
            await self.moved.wait()


async def relay(client: Client, process: GuestProcess, on_output: Callable[[], None]) -> int:
    """Carry the streams until the process has ended; return its exit status, or 141 as `SIGPIPE` would.

    `on_output` is called for each piece of output, before it is passed on.

    Raises:
        LinkLostError: The connection died before the process ended.
    """
    outputs = _Outputs(client, process, on_output)
    status: int | None = None
    lost: list[SshError] = []

    async with anyio.create_task_group() as tasks:

        async def end_when_unread() -> None:
            await outputs.until_closed()
            tasks.cancel_scope.cancel()

        tasks.start_soon(_pump_input, client, process)
        tasks.start_soon(outputs.pump_stdout)
        tasks.start_soon(outputs.pump_stderr)
        tasks.start_soon(end_when_unread)
        try:
            status = await process.wait()
            await outputs.drained()
        except SshError as error:
            lost.append(error)  # raised below: out of here it would come in a group
        tasks.cancel_scope.cancel()
    if lost:
        raise lost[0]
    return SIGPIPE_STATUS if status is None else status


async def _pump_input(client: Client, process: GuestProcess) -> None:
    try:
        while data := await client.receive_stdin():
            await process.write(data)
    except InputClosedError:
        return  # a command need not read all of its input
    process.write_eof()
