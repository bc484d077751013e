"""One stream to the guest's holder: its frames in, what they mean out.

What the guest says here is used for this session only, and bounded: whoever is root in it can be the holder.
"""

import asyncio
import struct

import anyio
import asyncssh

from claude_vm.drivers.guest.holder.frames import RefusedError, encode, next_frame
from claude_vm.supervisor.ssh.errors import LinkLostError, ShellError, SshError
from claude_vm.supervisor.ssh.link import Link
from claude_vm.supervisor.ssh.process import Output
from claude_vm.supervisor.ssh.remaining import Remaining, decode_remaining

ANSWER_S = 20.0
"""How long the holder may take to answer, in seconds."""

ACKNOWLEDGE = 256 * 1024
"""Output is acknowledged when so many bytes were read: less than the holder keeps without an answer."""

ACKNOWLEDGE_S = 0.02
"""What was read is acknowledged after this time at the latest, in seconds; not piece by piece, because each
message costs both sides more than the piece."""

MOST_WAITING = 4 * 1024 * 1024
"""Unread bytes of a session. The holder sends less, so a guest that sends more is no holder."""

MOST_UNSENT = 1024 * 1024
"""Bytes for the holder that the connection has not taken. It grants a window, so one that reads has less."""

_NO_OFFSET = 1 << 62
_OFFSET = struct.Struct(">Q")


class Stream(asyncssh.SSHUNIXSession[bytes]):
    """One stream to the holder: callbacks in, state out."""

    def __init__(self) -> None:
        self.channel: asyncssh.SSHUNIXChannel[bytes] | None = None
        self.ready = False
        self.primed = asyncio.Event()
        self.news = asyncio.Event()
        self.status: int | None = None
        self.over = asyncio.Event()
        self.closed = False
        self.error: Exception | None = None
        self.refusal = ""
        self.listing = b""
        self.remaining: asyncio.Future[Remaining] | None = None
        self.input_sent = 0
        self.input_taken = 0
        self.input_news = asyncio.Event()
        self._received = bytearray()
        self._outputs = (Output(), Output())
        self._ended = [False, False]
        self._begun = [False, False]
        self._told = [0, 0]  # offsets behind what came
        self._read = [0, 0]  # offsets behind what was read
        self._acknowledged = 0
        self._acknowledges: asyncio.TimerHandle | None = None

    # Callbacks of the library.

    def connection_made(self, chan: "asyncssh.SSHUNIXChannel[bytes]") -> None:
        """Take the channel."""
        self.channel = chan

    def data_received(self, data: bytes, datatype: int | None) -> None:  # noqa: ARG002 - no such types here
        """Take frames apart."""
        self._received += data
        try:
            while not self.closed and (frame := next_frame(self._received)) is not None:
                self._take(*frame)
        except (RefusedError, struct.error, UnicodeDecodeError, ValueError):
            self._fail("the guest's holder talks nonsense")

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end; everybody who waits learns it."""
        self.closed = True
        self.error = self.error or exc
        self._ended = [True, True]
        if self._acknowledges is not None:
            self._acknowledges.cancel()
        for output in self._outputs:
            output.news.set()
        for event in (self.primed, self.news, self.over, self.input_news):
            event.set()
        if self.remaining is not None and not self.remaining.done():
            self.remaining.set_result(Remaining())

    def _take(self, letter: bytes, payload: bytes) -> None:
        match letter:
            case b"O" | b"F":
                self._take_output(0 if letter == b"O" else 1, payload)
            case b"Z":
                self._end_output(int(payload) - 1)
            case b"C":
                self.input_taken = max(self.input_taken, min(_OFFSET.unpack(payload)[0], self.input_sent))
                self.input_news.set()
            case b"X":
                (status,) = struct.unpack(">I", payload)
                if status > 0xFF:
                    raise ValueError(status)
                self.status = status
                self.over.set()
                self.primed.set()
                self.input_news.set()
            case b"R":
                self.ready = True
                self.primed.set()
            case b"L":
                self.listing = payload
            case b"B":
                self._take_remaining(payload)
            case b"!":
                self._fail(payload[:1000].decode(errors="replace"))
            case _:
                raise ValueError(letter)
        self.news.set()

    def _take_output(self, index: int, payload: bytes) -> None:
        (offset,) = _OFFSET.unpack_from(payload)
        data = payload[_OFFSET.size :]
        if not self._begun[index]:
            self._begun[index] = True
            self._told[index] = self._read[index] = offset  # after a restart: what is kept begins here
        if offset != self._told[index] or offset >= _NO_OFFSET or not data or self._ended[index]:
            raise ValueError(offset)
        self._told[index] += len(data)
        self._outputs[index].add(data)
        if sum(self._told) - sum(self._read) > MOST_WAITING:
            self._fail("the guest's holder sends more than it may")

    def _end_output(self, index: int) -> None:
        if index not in {0, 1}:
            raise ValueError(index)
        self._ended[index] = True
        self._outputs[index].news.set()

    def _take_remaining(self, payload: bytes) -> None:
        if self.remaining is None and not payload:
            self.remaining = asyncio.get_running_loop().create_future()
        elif self.remaining is not None and not self.remaining.done():
            self.remaining.set_result(decode_remaining(payload))

    def _fail(self, reason: str) -> None:
        self.refusal = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in reason)
        self.close()

    # What the owner asks for.

    def send(self, letter: bytes, payload: bytes = b"") -> None:
        """Send a frame; ignored when the stream has ended."""
        if not self.closed and self.channel is not None and not self.channel.is_closing():
            self.channel.write(encode(letter, payload))
            if self.channel.get_write_buffer_size() > MOST_UNSENT:
                self._fail("the guest's holder takes nothing")

    async def wait_ready(self) -> None:
        """Wait until the shell waits.

        Raises:
            SshError: It ended instead.
        """
        await self.primed.wait()
        if not self.ready:
            raise self.failure("the guest's shell does not start")

    async def answered(self) -> None:
        """Wait for the first frame.

        Raises:
            SshError: The stream ended instead.
        """
        try:
            with anyio.fail_after(ANSWER_S):
                await self.news.wait()
        except TimeoutError:
            raise ShellError(f"the guest's holder does not answer within {ANSWER_S:g} s") from None
        if self.closed:
            raise self.failure("the guest's holder does not answer")

    def failure(self, message: str) -> SshError:
        """Return the error for a stream that ended."""
        if self.error is not None:
            return LinkLostError("the connection to the guest was lost", detail=str(self.error))
        return ShellError(message, detail=self.refusal)

    async def read(self, index: int, limit: int) -> bytes:
        """Return up to `limit` bytes of an output, empty at its end."""
        output = self._outputs[index]
        while not output.chunks:
            if self._ended[index]:
                return b""
            output.news.clear()
            await output.news.wait()
        data = output.take(limit)
        self._read[index] += len(data)
        if sum(self._read) - self._acknowledged >= ACKNOWLEDGE:
            self._acknowledge()
        elif self._acknowledges is None and not self.closed:
            self._acknowledges = asyncio.get_running_loop().call_later(ACKNOWLEDGE_S, self._acknowledge)
        return data

    def _acknowledge(self) -> None:
        if self._acknowledges is not None:
            self._acknowledges.cancel()
            self._acknowledges = None
        self._acknowledged = sum(self._read)
        self.send(b"A", struct.pack(">QQ", *self._read))

    def close(self) -> None:
        """End the stream. What was read is not told again to who comes next."""
        if not self.closed:
            if self._acknowledges is not None:
                self._acknowledge()
            if self.channel is not None:
                self.channel.abort()
            # The library tells the end only when the guest has closed too.
            self.connection_lost(None)


async def open_stream(link: Link) -> Stream:
    """Connect to the guest's holder.

    Raises:
        SshError: It does not listen, or the connection is lost.
    """
    stream = Stream()
    try:
        with anyio.fail_after(ANSWER_S):
            await link.open_holder(lambda: stream)
    except TimeoutError:
        raise ShellError(f"the guest opens no stream within {ANSWER_S:g} s") from None
    return stream
