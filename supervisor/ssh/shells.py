"""Primed shells and the sessions that they become: the supervisor's side of the guest's holder.

The holder (``drivers/guest/holder``; its opening comment has the protocol) owns a session's terminal or
pipes. Each shell is reached by a stream of its own through the SSH connection. What the guest says here is
used for this session only, and bounded: whoever is root in it can be the holder.
"""

import asyncio
import json
import struct
from collections.abc import Collection, Sequence
from enum import StrEnum

import anyio

from claude_vm.drivers.tasks import open_tasks
from claude_vm.supervisor.ssh.errors import (
    InputClosedError,
    LinkLostError,
    SessionUnknownError,
    ShellError,
    StatusLostError,
)
from claude_vm.supervisor.ssh.link import Link
from claude_vm.supervisor.ssh.process import Pty
from claude_vm.supervisor.ssh.remaining import RemainingWork
from claude_vm.supervisor.ssh.stream import Stream, open_stream

PRIME_S = 60.0
"""How long a shell may take to read its profile, in seconds, under software emulation on a busy host."""

INPUT_WINDOW = 256 * 1024
"""Bytes of input that may be on the way to a session."""

REMAINING_S = 1.0
"""How long the guest may take to tell what its main process has left behind, in seconds: it looks for a
quarter of a second at the most whether that is just ending."""

_PIECE = 64 * 1024


class ShellKind(StrEnum):
    """What a session's streams are."""

    PTY = "pty"
    PIPES = "pipes"


class HeldProcess:
    """A session's main process. One reader per output and one writer at a time.

    Who reads an output again has taken what came before: until then the guest keeps it for who comes next.

    From `keep` on it outlives its connection: who reads, writes or waits then waits until `attach` has found
    it again by another one.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._session_id = ""

    @classmethod
    def found(cls, session_id: str) -> "HeldProcess":
        """Return the process of a session that runs already, and is to be attached to."""
        process = cls(Stream())
        process.keep(session_id)
        process._stream.connection_lost(None)
        return process

    def keep(self, session_id: str) -> None:
        """Outlive the connection from now on."""
        self._session_id = session_id
        self._stream.kept = True

    @property
    def is_lost(self) -> bool:
        """Whether there is no connection to it now."""
        return self._stream.lost.is_set()

    @property
    def gap(self) -> int:
        """How many bytes of its output were given up by the guest before they could come, in all."""
        return self._stream.gap

    async def until_lost(self) -> None:
        """Wait until there is no connection to it."""
        await self._stream.lost.wait()

    async def attach(self, link: Link) -> None:
        """Go on by this connection: nothing that was read comes again, nothing that was sent arrives twice.

        Raises:
            SessionUnknownError: The guest does not hold the session any more.
            SshError: It can't be reached, which may be different the next time.
        """
        try:
            await self._stream.reopen(link, self._session_id)
        except ShellError as error:
            if self._stream.closed:
                raise SessionUnknownError(error.message, detail=error.detail) from error
            raise

    async def write(self, data: bytes) -> None:
        """Pass bytes to the process's input; return when there is room for more.

        When cancelled, the bytes may or may not have been passed on.

        Raises:
            InputClosedError: The connection is gone, or the input was ended.
        """
        stream = self._stream
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            while not stream.closed and (
                stream.input_sent + len(piece) - stream.input_taken > INPUT_WINDOW or not stream.takes
            ):
                stream.input_news.clear()
                await stream.input_news.wait()
            if stream.closed or stream.status is not None:
                raise InputClosedError("the process takes no more input")
            stream.input_sent += len(piece)
            stream.command(b"I", piece)

    def write_eof(self) -> None:
        """End the process's input. Allowed at any time, also twice."""
        self._stream.command(b"E")

    async def read_stdout(self, limit: int) -> bytes:
        """Return up to `limit` bytes, empty at the end. Who does not read stops the guest's writer."""
        return await self._stream.read(0, limit)

    async def read_stderr(self, limit: int) -> bytes:
        """Return up to `limit` bytes, empty at the end. With a PTY it ends at once, without any."""
        return await self._stream.read(1, limit)

    def position(self, output: int) -> int:
        """Return the offset behind what was read last of stdout (0) or stderr (1), lost bytes included."""
        return self._stream.position(output)

    def resize(self, rows: int, columns: int, width: int = 0, height: int = 0) -> None:
        """Tell the terminal's new size, in characters and pixels."""
        self._stream.command(b"W", struct.pack(">HHHH", *_fitting((rows, columns, width, height))))

    def send_signal(self, name: str) -> None:
        """Send a signal, by its name without SIG, to the process group. Ignored once it has ended."""
        if name.isalnum() and name.isascii() and self._stream.status is None:
            self._stream.command(b"K", name.encode())

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

    async def remaining(self) -> RemainingWork:
        """Return what works in the guest yet, although the process has ended; nothing if it tells nothing.

        For use after its end. Does not wait when nothing was left behind.
        """
        if (answer := self._stream.remaining) is None:
            return RemainingWork()
        with anyio.move_on_after(REMAINING_S):
            return await asyncio.shield(answer)
        return RemainingWork()

    async def aclose(self) -> None:
        """Leave the session, which goes on in the guest. Does not wait; may be called twice."""
        self._stream.close()
        await asyncio.sleep(0)  # the packet goes out before the caller goes on


class Shells:
    """The primed shells of one guest, of which one becomes the session. Made by `prime`."""

    def __init__(self, link: Link, term: str) -> None:
        self._link = link
        self._term = term
        self._streams: dict[ShellKind, Stream] = {}

    async def add(self, kind: ShellKind, term: str) -> None:
        """Have a shell of this kind wait, if there is none for this terminal.

        Raises:
            SshError: The guest can't.
        """
        former = self._streams.get(kind)
        if former is not None:
            if not former.closed and (kind is ShellKind.PIPES or term == self._term):
                return
            former.close()
        stream = await open_stream(self._link)
        self._streams[kind] = stream
        if kind is ShellKind.PTY:
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
        kind = ShellKind.PIPES if pty is None else ShellKind.PTY
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


async def prime(link: Link, kinds: Collection[ShellKind], *, term: str) -> Shells:
    """Have a login shell of each kind wait in the guest; return when they do.

    Each has read its profile then. `term` is the terminal that is expected; a session with another one gets
    a shell of its own.

    Raises:
        SshError: The guest starts no shell, or the connection is lost.
    """
    shells = Shells(link, term)
    try:
        async with open_tasks() as tasks:
            for kind in kinds:
                tasks.start_soon(shells.add, kind, term)
    except BaseException:
        await shells.aclose()
        raise
    return shells


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _fitting(size: Sequence[int]) -> list[int]:
    return [min(max(number, 0), 0xFFFF) for number in size]
