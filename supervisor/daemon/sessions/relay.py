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

TRICKLE_S = 3.0
"""How long, in seconds of waiting for the guest, output that goes on and on is carried once the main command
has ended. Only who keeps up with the output makes it wait."""

BACKLOG = 64 * 1024 * 1024
"""Bytes of one output that are carried once the main command has ended. It is more than that can have left on
the way, in the guest's holder or an SSH server, which may tell the status long before it sends the rest."""


class _Outputs:
    """The two output loops, and whether one of them waits for the guest (not for the client)."""

    def __init__(self, client: Client, process: GuestProcess, on_output: Callable[[bytes], None]) -> None:
        self._client = client
        self._process = process
        self._on_output = on_output
        self._reading = 0
        self.left = 2
        self.closed = False
        self.command_ended_at: float | None = None
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
        late_bytes = 0
        late_s = 0.0
        try:
            while late_bytes < BACKLOG and late_s < TRICKLE_S:
                begun = anyio.current_time()
                self._reading += 1
                try:
                    data = await read(CHUNK)
                finally:
                    self._reading -= 1
                if not data:
                    return
                if self.command_ended_at is not None:
                    late_bytes += len(data)
                    late_s += anyio.current_time() - max(begun, self.command_ended_at)
                self._on_output(data)
                self._stir()
                await write(data)
                self._stir()
        except OutputClosedError:
            self.closed = True
        finally:
            self.left -= 1
            self._stir()

    def _stir(self) -> None:
        self.moved.set()
        self.moved = anyio.Event()

    async def drained(self) -> None:
        """Wait until both streams ended, nothing comes any more, or more than the command can have written.

        For use right after the command's end.
        """
        self.command_ended_at = anyio.current_time()
        while self.left:
            moved = self.moved
            with anyio.move_on_after(DRAIN_S):
                await moved.wait()
            if self._process.is_lost:
                self.command_ended_at = anyio.current_time()  # what it wrote comes when it is found again
            elif not moved.is_set() and self._reading == self.left:  # for all that time
                return

    async def until_closed(self) -> None:
        """Wait until the client's reader of an output is gone."""
        while not self.closed:
            await self.moved.wait()


def _ignore(data: bytes) -> None:
    """Do nothing with it."""


async def relay(
    client: Client,
    process: GuestProcess,
    on_output: Callable[[bytes], None],
    next_signal: Callable[[], Awaitable[None]],
    on_input: Callable[[bytes], None] = _ignore,
) -> int:
    """Carry the streams until the process has ended; return its exit status, or 141 as `SIGPIPE` would.

    `on_output` and `on_input` are called with each piece, before it is passed on. `next_signal` waits for a
    signal of the client: one that comes when the process has ended already ends what is left to do.

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

        async def end_on_signal() -> None:
            await next_signal()
            tasks.cancel_scope.cancel()

        tasks.start_soon(_pump_input, client, process, on_input)
        tasks.start_soon(outputs.pump_stdout)
        tasks.start_soon(outputs.pump_stderr)
        tasks.start_soon(end_when_unread)
        try:
            status = await process.wait()
            tasks.start_soon(end_on_signal)
            await outputs.drained()
        except SshError as error:
            lost.append(error)  # raised below: out of here it would come in a group
        tasks.cancel_scope.cancel()
    if lost:
        raise lost[0]
    return SIGPIPE_STATUS if status is None else status


async def _pump_input(client: Client, process: GuestProcess, on_input: Callable[[bytes], None]) -> None:
    try:
        while data := await client.receive_stdin():
            on_input(data)
            await process.write(data)
    except InputClosedError:
        return  # a command need not read all of its input
    process.write_eof()
