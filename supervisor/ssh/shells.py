"""Primed shells and the sessions that they become: the supervisor's side of the guest's holder.

The holder (``drivers/guest/holder.py``; its opening comment has the protocol) owns a session's terminal or
pipes. Each shell is reached by a stream of its own through the SSH connection. What the guest says here is
used for this session only, and bounded: whoever is root in it can be the holder.
"""

import asyncio
import json
import struct
from collections.abc import Collection, Sequence
from enum import StrEnum

import anyio
import asyncssh
import msgspec

from claude_vm.supervisor.ssh.errors import (
    InputClosedError,
    LinkLostError,
    ShellError,
    SshError,
    StatusLostError,
)
from claude_vm.supervisor.ssh.link import Link
from claude_vm.supervisor.ssh.process import Output, Pty

PRIME_S = 60.0
"""How long a shell may take to read its profile, in seconds, under software emulation on a busy host."""

ANSWER_S = 20.0
"""How long the holder may take to answer, in seconds."""

INPUT_WINDOW = 256 * 1024
"""Bytes of input that may be on the way to a session."""

ACKNOWLEDGE = 256 * 1024
"""Output is acknowledged when so many bytes were read, or nothing is left."""

MOST_WAITING = 4 * 1024 * 1024
"""Unread bytes of a session. The holder sends less, so a guest that sends more is no holder."""

MOST_UNSENT = 1024 * 1024
"""Bytes for the holder that the connection has not taken. It grants a window, so one that reads has less."""

_FRAME_LIMIT = 1 << 17
_PIECE = 64 * 1024
_NO_OFFSET = 1 << 62
_HEADER = struct.Struct(">cI")
_OFFSET = struct.Struct(">Q")


class Kind(StrEnum):
    """What a session's streams are."""

    PTY = "pty"
    PIPES = "pipes"


class HeldSession(msgspec.Struct, frozen=True):
    """A session that the holder has. `status` is None while it runs."""

    session_id: str
    pty: bool
    status: int | None


class HeldProcess:
    """A session's main process. One reader per output and one writer at a time."""

    def __init__(self, stream: "_Stream") -> None:
        self._stream = stream

    async def write(self, data: bytes) -> None:
        """Pass bytes to the process's input; return when there is room for more.

        When cancelled, the bytes may or may not have been passed on.

        Raises:
            InputClosedError: The connection is gone, or the input was ended.
        """
        stream = self._stream
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            while stream.input_sent + len(piece) - stream.input_taken > INPUT_WINDOW and not stream.closed:
                stream.input_news.clear()
                await stream.input_news.wait()
            if stream.closed or stream.status is not None:
                raise InputClosedError("the process takes no more input")
            stream.input_sent += len(piece)
            stream.send(b"I", piece)

    def write_eof(self) -> None:
        """End the process's input. Allowed at any time, also twice."""
        self._stream.send(b"E")

    async def read_stdout(self, limit: int) -> bytes:
        """Return up to `limit` bytes, empty at the end. Who does not read stops the guest's writer."""
        return await self._stream.read(0, limit)

    async def read_stderr(self, limit: int) -> bytes:
        """Return up to `limit` bytes, empty at the end. With a PTY it ends at once, without any."""
        return await self._stream.read(1, limit)

    def resize(self, rows: int, columns: int, width: int = 0, height: int = 0) -> None:
        """Tell the terminal's new size, in characters and pixels."""
        self._stream.send(b"W", struct.pack(">HHHH", *_fitting((rows, columns, width, height))))

    def send_signal(self, name: str) -> None:
        """Send a signal, by its name without SIG, to the process group. Ignored once it has ended."""
        if name.isalnum() and name.isascii() and self._stream.status is None:
            self._stream.send(b"K", name.encode())

    async def wait(self) -> int:
        """Return the exit status; 128+n when signal n ended the process.

        Returns as soon as the guest tells it. Output may still come then, and as long as a background
        process holds the streams, its end does not come.

        Raises:
            LinkLostError: The connection ended first.
            StatusLostError: The holder ended the stream without a status.
        """
        stream = self._stream
        await stream.over.wait()
        if stream.status is not None:
            return stream.status
        if stream.error is not None:
            raise LinkLostError("the connection to the guest was lost", detail=str(stream.error))
        raise StatusLostError("the process ended without an exit status", detail=stream.refusal)

    async def aclose(self) -> None:
        """Leave the session, which goes on in the guest. Does not wait; may be called twice."""
        self._stream.close()
        await asyncio.sleep(0)  # the packet goes out before the caller goes on


class Shells:
    """The primed shells of one guest, of which one becomes the session. Made by `prime`."""

    def __init__(self, link: Link, term: str) -> None:
        self._link = link
        self._term = term
        self._streams: dict[Kind, _Stream] = {}

    async def add(self, kind: Kind, term: str) -> None:
        """Have a shell of this kind wait, if there is none for this terminal.

        Raises:
            SshError: The guest can't.
        """
        former = self._streams.get(kind)
        if former is not None:
            if not former.closed and (kind is Kind.PIPES or term == self._term):
                return
            former.close()
        stream = await _open(self._link)
        self._streams[kind] = stream
        if kind is Kind.PTY:
            self._term = term
        stream.send(b"P", _json({"kind": kind.value, "term": term}))
        try:
            with anyio.fail_after(PRIME_S):
                await stream.wait_ready()
        except TimeoutError:
            raise ShellError(
                f"the guest's shell is not ready after {PRIME_S:g} s",
                hint="does its profile wait for something?",
            ) from None

    async def start(self, session_id: str, *, pty: Pty | None) -> HeldProcess:
        """Let a shell become the session, whose files are in the guest; the others are closed.

        Raises:
            SshError: No shell waits, and the guest starts none.
        """
        kind = Kind.PIPES if pty is None else Kind.PTY
        await self.add(kind, self._term if pty is None else pty.term)
        stream = self._streams.pop(kind)
        size = (0, 0, 0, 0) if pty is None else (pty.rows, pty.columns, pty.width, pty.height)
        stream.send(b"S", _json({"session": session_id, "size": _fitting(size)}))
        await self.aclose()
        return HeldProcess(stream)

    async def aclose(self) -> None:
        """Close the shells that wait. May be called twice; does not wait."""
        for stream in self._streams.values():
            stream.close()
        self._streams.clear()
        await asyncio.sleep(0)


async def prime(link: Link, kinds: Collection[Kind], *, term: str) -> Shells:
    """Have a login shell of each kind wait in the guest; return when they do.

    Each has read its profile then. `term` is the terminal that is expected; a session with another one gets
    a shell of its own.

    Raises:
        SshError: The guest starts no shell, or the connection is lost.
    """
    shells = Shells(link, term)
    failures: list[SshError] = []

    async def add(kind: Kind) -> None:
        try:
            await shells.add(kind, term)
        except SshError as error:
            failures.append(error)

    primed = False
    try:
        async with anyio.create_task_group() as tasks:
            for kind in kinds:
                tasks.start_soon(add, kind)
        primed = not failures
    finally:
        if not primed:
            await shells.aclose()
    if failures:
        raise failures[0]
    return shells


async def attach(link: Link, session_id: str) -> HeldProcess:
    """Connect to a session that runs already; it is read on from what the holder has kept.

    Raises:
        SshError: There is no such session, or the connection is lost.
    """
    stream = await _open(link)
    stream.send(b"T", _json({"session": session_id, "out": None, "err": None}))
    answered = False
    try:
        await stream.answered()
        answered = True
    finally:
        if not answered:
            stream.close()
    return HeldProcess(stream)


async def held_sessions(link: Link) -> Sequence[HeldSession]:
    """Return the sessions that the guest holds.

    Raises:
        SshError: The holder does not answer, or talks nonsense.
    """
    stream = await _open(link)
    try:
        stream.send(b"L")
        await stream.answered()
    finally:
        stream.close()
    try:
        rows = msgspec.json.decode(stream.listing, type=list[_Row])
    except msgspec.MsgspecError as error:
        raise ShellError("the guest's holder talks nonsense") from error
    return [HeldSession(row.session, row.kind == Kind.PTY, row.status) for row in rows]


class _Row(msgspec.Struct, frozen=True):
    session: str
    kind: str
    status: int | None


class _Stream(asyncssh.SSHUNIXSession[bytes]):
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

    # Callbacks of the library.

    def connection_made(self, chan: "asyncssh.SSHUNIXChannel[bytes]") -> None:
        """Take the channel."""
        self.channel = chan

    def data_received(self, data: bytes, datatype: int | None) -> None:  # noqa: ARG002 - no such types here
        """Take frames apart."""
        self._received += data
        while not self.closed and len(self._received) >= _HEADER.size:
            letter, length = _HEADER.unpack_from(self._received)
            if length > _FRAME_LIMIT:
                self._fail("the guest's holder talks nonsense")
                return
            if len(self._received) < _HEADER.size + length:
                return
            payload = bytes(self._received[_HEADER.size : _HEADER.size + length])
            del self._received[: _HEADER.size + length]
            try:
                self._take(letter, payload)
            except (struct.error, UnicodeDecodeError, ValueError):
                self._fail("the guest's holder talks nonsense")

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end; everybody who waits learns it."""
        self.closed = True
        self.error = self.error or exc
        self._ended = [True, True]
        for output in self._outputs:
            output.news.set()
        for event in (self.primed, self.news, self.over, self.input_news):
            event.set()

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

    def _fail(self, reason: str) -> None:
        self.refusal = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in reason)
        self.close()

    # What the owner asks for.

    def send(self, letter: bytes, payload: bytes = b"") -> None:
        """Send a frame; ignored when the stream has ended."""
        if not self.closed and self.channel is not None and not self.channel.is_closing():
            self.channel.write(_HEADER.pack(letter, len(payload)) + payload)
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
        if sum(self._read) - self._acknowledged >= ACKNOWLEDGE or not output.chunks:
            self._acknowledged = sum(self._read)
            self.send(b"A", struct.pack(">QQ", *self._read))
        return data

    def close(self) -> None:
        """End the stream."""
        if not self.closed:
            if self.channel is not None:
                self.channel.abort()
            # The library tells the end only when the guest has closed too.
            self.connection_lost(None)


async def _open(link: Link) -> _Stream:
    stream = _Stream()
    try:
        with anyio.fail_after(ANSWER_S):
            await link.open_holder(lambda: stream)
    except TimeoutError:
        raise ShellError(f"the guest opens no stream within {ANSWER_S:g} s") from None
    return stream


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _fitting(size: Sequence[int]) -> list[int]:
    return [min(max(number, 0), 0xFFFF) for number in size]
