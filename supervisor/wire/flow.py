"""Flow control for anyio tasks: windows, and a queue of frames that one task writes.

Frames are queued whole and without waiting. What the connection takes at once is written at once: each task
that a key's echo waits for costs a turn of the event loop, behind whatever floods there. The rest is written
by a task of its own. So a task that is cancelled while it sends never leaves half a frame on the connection,
and what it said before is still said.
"""

import socket
from collections import deque

import anyio
from anyio.abc import ByteStream, SocketAttribute

from claude_vm.supervisor.conditions import Condition
from claude_vm.supervisor.wire.errors import ProtocolError

BATCH = 256 * 1024
"""Bytes that are written at once, at most (or one frame)."""

ROOM = 256 * 1024
"""Queued bytes above which frames without a window of their own wait."""


class Window:
    """How many bytes of one stream may still be sent. Cancelling `take` takes nothing."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._credit = size
        self._changed = Condition()
        self._closed: Exception | None = None

    @property
    def closed(self) -> bool:
        """Whether the stream is closed."""
        return self._closed is not None

    async def take(self, wanted: int) -> int:
        """Wait for credit; take and return as much of `wanted` (> 0) as there is.

        Raises:
            Exception: The stream is closed: what `close` was given.
        """
        while True:
            if self._closed is not None:
                raise self._closed
            if self._credit:
                taken = min(wanted, self._credit)
                self._credit -= taken
                return taken
            await self._changed.wait()

    def give(self, count: int) -> None:
        """Take an acknowledgement.

        Raises:
            ProtocolError: More is acknowledged than was sent.
        """
        if count > self._size - self._credit:
            raise ProtocolError("more bytes are acknowledged than were sent")
        self._credit += count
        self._changed.notify_all()

    def close(self, error: Exception) -> None:
        """Let every `take`, now and later, raise this error. The first close counts."""
        if self._closed is None:
            self._closed = error
            self._changed.notify_all()


class Inflow:
    """Bytes of one stream that have come and wait for their reader; never more than the window.

    Bytes count until `take_acknowledged` says that they were passed on: that is what the sender is told.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._pieces: deque[bytes] = deque()
        self._unacknowledged = 0
        self._handed_out = 0
        self._ended = False
        self._changed = Condition()

    def put(self, data: bytes) -> None:
        """Take what has come. Never waits.

        Raises:
            ProtocolError: The sender exceeds its window, or goes on after its end.
        """
        if self._ended:
            raise ProtocolError("data after the end of its stream")
        self._unacknowledged += len(data)
        if self._unacknowledged > self._size:
            raise ProtocolError("more data than the window allows")
        self._pieces.append(data)
        self._changed.notify_all()

    def end(self) -> None:
        """No more will come. What has come can still be read. Repeating it is fine."""
        self._ended = True
        self._changed.notify_all()

    async def receive(self, most: int) -> bytes:
        """Return 1 to `most` bytes, or ``b""`` at the end. For one reader at a time.

        As many as there are, in however small pieces they came.
        """
        while not self._pieces:
            if self._ended:
                return b""
            await self._changed.wait()
        taken = [self._pieces.popleft()]
        size = len(taken[0])
        while size < most and self._pieces:
            taken.append(self._pieces.popleft())
            size += len(taken[-1])
        if size > most:
            last = taken.pop()
            kept = len(last) - (size - most)
            self._pieces.appendleft(last[kept:])
            taken.append(last[:kept])
            size = most
        self._handed_out += size
        return taken[0] if len(taken) == 1 else b"".join(taken)

    def take_acknowledged(self) -> int:
        """Return how many bytes were handed out since the last call. They no longer count as under way."""
        count, self._handed_out = self._handed_out, 0
        self._unacknowledged -= count
        return count


class Outbox:
    """Whole frames on their way out. What can't be written at once is queued, and written by `run`."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._socket: socket.socket | None = stream.extra(SocketAttribute.raw_socket, None)  # noqa: S610 - no SQL
        self._begun = b""  # the rest of a frame whose beginning is written
        self._frames: deque[bytes] = deque()
        self._queued = 0  # bytes that are not written, of all these and of what `run` writes now
        self._changed = Condition()
        self._broken = False
        self._ending = False

    def put(self, frame: bytes) -> None:
        """Write or queue a frame. Never waits; on a connection that is broken or ends it is dropped."""
        if self._broken or self._ending:
            return
        if self._queued or not (sent := self._write_now(frame)):
            self._frames.append(frame)
            self._queued += len(frame)
        else:
            self._begun = frame[sent:]
            self._queued = len(self._begun)
        self._changed.notify_all()

    def _write_now(self, frame: bytes) -> int:
        """Return how many bytes of a frame the connection has taken."""
        if self._socket is None:
            return 0
        try:
            return self._socket.send(frame)
        except OSError:  # there is no room, or `run` will meet what is wrong
            return 0

    async def wait_for_room(self) -> None:
        """Wait until there is little in the queue, or the connection is broken."""
        while self._queued > ROOM and not self._broken:
            await self._changed.wait()

    async def wait_empty(self) -> None:
        """Wait until everything is written, or the connection is broken."""
        while self._queued and not self._broken:
            await self._changed.wait()

    def put_last(self, frame: bytes) -> None:
        """Queue a frame after which no other is taken. Never waits; the first one counts."""
        self.put(frame)
        self._ending = True

    def cut_off_with(self, frame: bytes) -> None:
        """Drop what is queued, and let this be the last frame."""
        self._queued -= sum(len(f) for f in self._frames)
        self._frames.clear()
        self._ending = False
        self.put_last(frame)

    def break_off(self) -> None:
        """Drop everything: nobody will read it."""
        self._broken = True
        self._begun = b""
        self._frames.clear()
        self._queued = 0
        self._changed.notify_all()

    async def run(self) -> None:
        """Write what is queued until the connection breaks. Ends then, or is cancelled; never raises."""
        while not self._broken:
            if not self._queued:
                await self._changed.wait()
                continue
            batch = [self._begun or self._frames.popleft()]
            self._begun = b""
            size = len(batch[0])
            while self._frames and size + len(self._frames[0]) <= BATCH:
                size += len(self._frames[0])
                batch.append(self._frames.popleft())
            try:
                await self._stream.send(b"".join(batch))
            except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
                self.break_off()
                return
            self._queued -= size
            self._changed.notify_all()
