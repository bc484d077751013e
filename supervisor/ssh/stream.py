"""One stream to the guest's holder: its frames in, what they mean out.

What the guest says here is used for this session only, and bounded: whoever is root in it can be the holder.

A stream that is `kept` outlives its channel. It is *lost* then, and nobody who reads, writes or waits learns
of it: what was received can be read, what is to be sent waits. `reopen` goes on over another channel: output
comes from where it was received to, and what the holder has not counted is repeated.
"""

import asyncio
import json
import struct
from collections import deque

import anyio
import asyncssh

from claude_vm.drivers.guest.holder.frames import FrameError, encode, next_frame
from claude_vm.supervisor.ssh.errors import LinkLostError, ShellError, SshError
from claude_vm.supervisor.ssh.link import Link
from claude_vm.supervisor.ssh.process import ReceivedOutput
from claude_vm.supervisor.ssh.remaining import RemainingWork, decode_remaining

ANSWER_S = 20.0
"""How long the holder may take to answer, in seconds."""

ACKNOWLEDGE = 256 * 1024
"""Output is acknowledged when so many bytes were taken: less than the holder keeps without an answer."""

ACKNOWLEDGE_S = 0.02
"""What was taken is acknowledged after this time at the latest, in seconds; not piece by piece, because each
message costs both sides more than the piece."""

MOST_WAITING = 4 * 1024 * 1024
"""Unread bytes of a session. The holder sends less, so a guest that sends more is no holder."""

MOST_UNSENT = 1024 * 1024
"""Bytes for the holder that the connection has not taken. It grants a window, so one that reads has less."""

MOST_COMMANDS = 4096
"""Frames for the holder that it has not counted. It counts each few dozen."""

_NO_OFFSET = 1 << 62
_OFFSET = struct.Struct(">Q")
_COUNTS = struct.Struct(">QQ")


class Ear(asyncssh.SSHUNIXSession[bytes]):
    """Hears one channel for a stream, as long as that has no other one."""

    def __init__(self, stream: "Stream") -> None:
        self._stream = stream
        self._channel: asyncssh.SSHUNIXChannel[bytes] | None = None

    def connection_made(self, chan: "asyncssh.SSHUNIXChannel[bytes]") -> None:
        """Take the channel."""
        self._channel = chan
        self._stream.connection_made(chan)

    def data_received(self, data: bytes, datatype: int | None) -> None:
        """Pass on what came."""
        if self._stream.channel is self._channel:
            self._stream.data_received(data, datatype)

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass on the end."""
        if self._stream.channel is self._channel:
            self._stream.connection_lost(exc)


class Stream:
    """One stream to the holder: callbacks in, state out."""

    def __init__(self) -> None:
        self.channel: asyncssh.SSHUNIXChannel[bytes] | None = None
        self.ready = False
        self.primed = asyncio.Event()
        self.status: int | None = None
        self.over = asyncio.Event()
        self.closed = False
        self.kept = False
        self.lost = asyncio.Event()
        self.gap = 0
        self.error: Exception | None = None
        self.refusal = ""
        self.remaining: asyncio.Future[RemainingWork] | None = None
        self.input_sent = 0
        self.input_taken = 0
        self.input_news = asyncio.Event()
        self._commands: deque[tuple[bytes, bytes]] = deque()  # not counted by the holder yet
        self._counted = 0
        self._greeted = asyncio.Event()
        self._greeted.set()
        self._received = bytearray()
        self._outputs = (ReceivedOutput(), ReceivedOutput())
        self._ended = [False, False]
        self._begun = [False, False]
        self._taken = [0, 0]  # offsets behind what whoever reads has done with
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
        except (FrameError, struct.error, UnicodeDecodeError, ValueError):
            self._fail("the guest's holder sent invalid data")

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end of the channel, which is that of the stream if it is not kept."""
        self.error = self.error or exc
        if self.kept and not self.closed:
            self.channel = None
            self._received.clear()
            self.lost.set()
            self._greeted.set()
        else:
            self._end()

    def _end(self) -> None:
        """Note the end of the stream; everybody who waits learns it."""
        self.closed = True
        self._ended = [True, True]
        if self._acknowledges is not None:
            self._acknowledges.cancel()
        for output in self._outputs:
            output.news.set()
        for event in (self.primed, self.over, self.input_news, self.lost, self._greeted):
            event.set()
        if self.remaining is not None and not self.remaining.done():
            self.remaining.set_result(RemainingWork())

    def _take(self, letter: bytes, payload: bytes) -> None:
        match letter:
            case b"O" | b"F":
                self._take_output(0 if letter == b"O" else 1, payload)
            case b"Z":
                self._end_output(int(payload) - 1)
            case b"C":
                self._take_counts(*_COUNTS.unpack(payload))
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
            case b"B":
                self._take_remaining(payload)
            case b"!":
                self._fail(payload[:1000].decode(errors="replace"))
            case _:
                raise ValueError(letter)

    def _take_output(self, index: int, payload: bytes) -> None:
        (offset,) = _OFFSET.unpack_from(payload)
        data = payload[_OFFSET.size :]
        output = self._outputs[index]
        if not self._begun[index]:
            self._begun[index] = True
            self.gap += output.skip(offset)  # what is kept begins here
        if offset != output.told or offset >= _NO_OFFSET or not data or self._ended[index]:
            raise ValueError(offset)
        output.add(data)
        if self._outputs[0].waiting + self._outputs[1].waiting > MOST_WAITING:
            self._fail("the guest's holder sends more than it may")

    def _take_counts(self, consumed: int, counted: int) -> None:
        if not self._greeted.is_set():
            if not self._counted and not self.input_sent:  # others had the session before us
                self.input_sent = self.input_taken = consumed
                self._counted = counted
            self._greeted.set()
            self._count(counted)
            for command in self._commands:
                self.send(*command)
        else:
            self._count(counted)
        self.input_taken = max(self.input_taken, min(consumed, self.input_sent))
        self.input_news.set()

    def _count(self, counted: int) -> None:
        if not self._counted <= counted <= self._counted + len(self._commands):
            raise ValueError(counted)
        while self._counted < counted:
            self._counted += 1
            self._commands.popleft()

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

    def command(self, letter: bytes, payload: bytes = b"") -> None:
        """Send a frame that must come once, now or over the next channel; ignored at the stream's end."""
        if self.closed:
            return
        self._commands.append((letter, payload))
        if len(self._commands) > MOST_COMMANDS:
            self._fail("the guest's holder accepts no data")
        elif self._greeted.is_set():
            self.send(letter, payload)

    @property
    def takes(self) -> bool:
        """Whether the holder keeps up with what it is sent."""
        return len(self._commands) < MOST_COMMANDS // 4

    async def reopen(self, link: Link, session: str) -> None:
        """Go on over a channel of this link, which may be the one that the former channel was of.

        Raises:
            LinkLostError: The connection is lost again.
            ShellError: The holder does not answer. If the stream is `closed` then, it knows no such session.
        """
        former, self.channel = self.channel, None
        if former is not None:
            former.abort()
        self._received.clear()
        self._begun = [False, False]
        self.error = None
        self._greeted.clear()
        self.lost.clear()
        request = {"session": session, "out": self._outputs[0].told, "err": self._outputs[1].told}
        answered = False
        try:
            with anyio.fail_after(ANSWER_S):
                await link.open_holder(lambda: Ear(self))
                self.send(b"T", json.dumps(request).encode())
                await self._greeted.wait()
            answered = True
        except TimeoutError:
            raise ShellError(f"the guest's holder does not answer within {ANSWER_S:g} s") from None
        finally:
            if not answered:
                self._lose()
        if self.lost.is_set():
            raise self.failure("the guest's holder ended the stream")

    def _lose(self) -> None:
        """Be without a channel."""
        former, self.channel = self.channel, None
        if former is not None:
            former.abort()
        self.lost.set()

    def send(self, letter: bytes, payload: bytes = b"") -> None:
        """Send a frame; ignored when there is no channel."""
        if not self.closed and self.channel is not None and not self.channel.is_closing():
            self.channel.write(encode(letter, payload))
            if self.channel.get_write_buffer_size() > MOST_UNSENT:
                self._fail("the guest's holder accepts no data")

    async def wait_ready(self) -> None:
        """Wait until the shell waits.

        Raises:
            SshError: It ended instead.
        """
        await self.primed.wait()
        if not self.ready:
            raise self.failure("the guest's shell does not start")

    def failure(self, message: str) -> SshError:
        """Return the error for a stream that ended."""
        if self.error is not None:
            return LinkLostError("the connection to the guest was lost", detail=str(self.error))
        return ShellError(message, detail=self.refusal)

    async def read(self, index: int, limit: int) -> bytes:
        """Return up to `limit` bytes of an output, empty at its end.

        The call says that what the former one returned was taken: only now the holder may forget that.
        """
        output = self._outputs[index]
        self._count_taken(index)
        while not output.waiting:
            if self._ended[index]:
                return b""
            output.news.clear()
            await output.news.wait()
        return output.take(limit)

    def position(self, index: int) -> int:
        """Return the offset behind what was read last of an output."""
        return self._outputs[index].read

    def _count_taken(self, index: int) -> None:
        if self._taken[index] == self._outputs[index].read:
            return
        self._taken[index] = self._outputs[index].read
        if sum(self._taken) - self._acknowledged >= ACKNOWLEDGE:
            self._acknowledge()
        elif self._acknowledges is None and not self.closed:
            self._acknowledges = asyncio.get_running_loop().call_later(ACKNOWLEDGE_S, self._acknowledge)

    def _acknowledge(self) -> None:
        if self._acknowledges is not None:
            self._acknowledges.cancel()
            self._acknowledges = None
        self._acknowledged = sum(self._taken)
        self.send(b"A", struct.pack(">QQ", *self._taken))

    def close(self) -> None:
        """End the stream. What was taken is not told again to who comes next."""
        if not self.closed:
            if self._acknowledges is not None:
                self._acknowledge()
            if self.channel is not None:
                self.channel.abort()
            # The library tells the end only when the guest has closed too.
            self._end()


async def open_stream(link: Link) -> Stream:
    """Connect to the guest's holder.

    Raises:
        SshError: It does not listen, or the connection is lost.
    """
    stream = Stream()
    try:
        with anyio.fail_after(ANSWER_S):
            await link.open_holder(lambda: Ear(stream))
    except TimeoutError:
        raise ShellError(f"the guest opens no stream within {ANSWER_S:g} s") from None
    return stream
