"""What a main command writes, on its way to who reads it: lossless, with back-pressure from end to end.

Each output is one loop, which takes a piece only when all readers have taken the former one. So a reader that
waits stops the guest's writer: its window fills, this loop waits, the guest's holder keeps. Nothing else is
done for a piece, however many readers there are. Without a reader, what comes is dropped.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

import anyio
import structlog

from claude_vm.drivers.tasks import open_tasks
from claude_vm.supervisor.conditions import AutoResetEvent
from claude_vm.supervisor.ssh.shells import HeldProcess
from claude_vm.supervisor.statuses import OUTPUT_CLOSED
from claude_vm.supervisor.wire.errors import OutputClosedError

log = structlog.get_logger()

CHUNK = 64 * 1024
"""Bytes a step. One frame of the protocol."""

DRAIN_S = 0.5
"""How long output may be silent, in seconds, once the main command has ended. Something it left in the
background may hold the streams open; what the command itself wrote is in the channel by then."""

TRICKLE_S = 3.0
"""How long, in seconds of waiting for the guest, output that goes on and on is carried once the main command
has ended. Only who keeps up with the output makes it wait."""

BACKLOG = 64 * 1024 * 1024
"""Bytes of one output that are carried once the main command has ended. It is more than that can have left on
the way, in the guest's holder or an SSH server, which may tell the status long before it sends the rest."""

STDOUT, STDERR = 0, 1


class Reader(Protocol):
    """Takes what a main command writes. Who must have all of it waits; all others return at once."""

    async def take(self, output: int, offset: int, data: bytes) -> None:
        """Take the next piece of an output, `STDOUT` or `STDERR`.

        `offset` is where it begins in all that the command has written there. Where that is behind the end of
        the former piece, the guest could not keep what is missing.

        Raises:
            OutputClosedError: Nobody reads this any more.
            Exception: It can't take it. Whatever is raised, the reader gets nothing more of either output.
        """
        ...


class Outputs:
    """Both outputs of a main command, and their readers, which come and go at any time.

    A reader that fails is dropped. When it was the last one that *counts*, as a client does and no recorder,
    the command ends as it would by SIGPIPE. `offsets` are behind what was passed on: a reader that comes now
    begins there. `noted` is told each piece of output first, and never waits.
    """

    def __init__(self, noted: Callable[[bytes], None] = lambda _: None) -> None:
        self.offsets = [0, 0]
        self._noted = noted
        self._readers: dict[Reader, bool] = {}  # whether it counts
        self._reading = 0  # loops that wait for the guest, not for a reader
        self._left = 2
        self._scope = anyio.CancelScope()
        self._ended_at: float | None = None
        self._moved = AutoResetEvent()

    def add(self, reader: Reader, *, counts: bool) -> None:
        """Let a reader have all pieces from now on. Never waits."""
        self._readers[reader] = counts

    def remove(self, reader: Reader) -> None:
        """Let a reader go; the command goes on. Never waits, but the outputs do for its last `take`."""
        self._readers.pop(reader, None)
        self._moved.set()

    async def carry(self, process: HeldProcess) -> int:
        """Carry both until the command has ended; return its exit status, or that its readers are gone.

        To be called once.

        Raises:
            LinkLostError: The connection died before the command ended.
        """
        status = OUTPUT_CLOSED
        async with open_tasks() as tasks:
            self._scope = tasks.cancel_scope
            tasks.start_soon(self._pump, process, STDOUT, process.read_stdout)
            tasks.start_soon(self._pump, process, STDERR, process.read_stderr)
            status = await process.wait()
            await self._drained(process)
            tasks.cancel_scope.cancel()
        return status

    def hurry(self) -> None:
        """Carry no more if the command has ended: nobody wants to wait for the rest. Never waits."""
        if self._ended_at is not None:
            self._scope.cancel()

    async def _pump(self, process: HeldProcess, output: int, read: Callable[[int], Awaitable[bytes]]) -> None:
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
                if self._ended_at is not None:
                    late_bytes += len(data)
                    late_s += anyio.current_time() - max(begun, self._ended_at)
                self._moved.set()
                self._noted(data)
                end = self.offsets[output] = process.position(output)
                for reader in tuple(self._readers):
                    try:
                        if reader in self._readers:  # the other output may have dropped it meanwhile
                            await reader.take(output, end - len(data), data)
                    except OutputClosedError:
                        self._drop(reader)
                    except Exception:  # the others go on
                        log.exception("reader-failed", output=output)
                        self._drop(reader)
                self._moved.set()
        finally:
            self._left -= 1
            self._moved.set()

    def _drop(self, reader: Reader) -> None:
        counted = self._readers.get(reader, False)
        self.remove(reader)
        if counted and not any(self._readers.values()):
            self._scope.cancel()

    async def _drained(self, process: HeldProcess) -> None:
        """Wait until both outputs ended, nothing comes any more, or more than the command can have written.

        For use right after the command's end. Where nobody reads there is nothing to wait for.
        """
        self._ended_at = anyio.current_time()
        while self._left and self._readers:
            with anyio.move_on_after(DRAIN_S) as silence:
                await self._moved.wait()
            if process.is_lost:
                self._ended_at = anyio.current_time()  # what it wrote comes when it is found again
            elif (
                silence.cancelled_caught and not self._moved.is_set and self._reading == self._left
            ):  # for all that time
                return
