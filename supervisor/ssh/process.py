"""A process in a guest: its streams with back-pressure both ways, its terminal, and how it ended."""

import asyncio
from collections import deque

import asyncssh
import msgspec
from asyncssh.constants import EXTENDED_DATA_STDERR

from claude_vm.supervisor.ssh.errors import InputClosedError, LinkLostError, StatusLostError

WINDOW = 2 * 1024 * 1024
"""Bytes that a guest may send ahead on one channel: the most that waits in the library for a slow reader."""

MAX_PACKET = 64 * 1024
"""Largest packet that we accept on a channel, in bytes. Fewer and larger packets are cheaper here."""

_HIGH_WATER = 512 * 1024
_LOW_WATER = 128 * 1024
_SMALL = 1024
_STDOUT: int | None = None

# The guest is Linux, whatever this host is, so the numbers are Linux's.
_SIGNALS = {
    name: number
    for number, name in enumerate(
        (
            *("HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2"),
            *("PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG"),
            *("XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS"),
        ),
        start=1,
    )
}


class Pty(msgspec.Struct, frozen=True):
    """The terminal that a process shall have.

    `rows` and `columns` count characters, `width` and `height` pixels (0: unknown). `modes` are pairs of an
    opcode of RFC 4254, section 8, and its value.
    """

    term: str
    rows: int
    columns: int
    width: int = 0
    height: int = 0
    modes: tuple[tuple[int, int], ...] = ()


class Output:
    """What came on one stream and was not read yet."""

    def __init__(self) -> None:
        self.chunks: deque[bytes] = deque()
        self.news = asyncio.Event()

    def add(self, data: bytes) -> None:
        """Append, joining small chunks, whose overhead would be more than what they hold."""
        if self.chunks and len(self.chunks[-1]) + len(data) <= _SMALL:
            self.chunks[-1] += data
        else:
            self.chunks.append(data)
        self.news.set()

    def take(self, limit: int) -> bytes:
        """Remove up to `limit` bytes, joining small chunks."""
        taken: list[bytes] = []
        room = limit
        while self.chunks and room:
            chunk = self.chunks.popleft()
            if len(chunk) > room:
                self.chunks.appendleft(chunk[room:])
                chunk = chunk[:room]
            taken.append(chunk)
            room -= len(chunk)
        return taken[0] if len(taken) == 1 else b"".join(taken)


class ProcessSession(asyncssh.SSHClientSession[bytes]):
    """The library's side of a process: callbacks in, state out. Not for use outside this package."""

    def __init__(self) -> None:
        self.channel: asyncssh.SSHClientChannel[bytes] | None = None
        self.status: int | None = None
        self.status_known = asyncio.Event()
        self.closed = False
        self.error: Exception | None = None
        self.writable = asyncio.Event()
        self.writable.set()
        self._stdout = Output()
        self._stderr = Output()
        self._waiting = 0
        self._paused = False
        self._ended = False

    def connection_made(self, chan: "asyncssh.SSHClientChannel[bytes]") -> None:
        """Take the channel, which is open but runs nothing yet."""
        self.channel = chan

    def data_received(self, data: bytes, datatype: int | None) -> None:
        """Keep output until it is read; above the mark, tell the library to accept no more."""
        output = self._output(datatype)
        output.add(data)
        self._waiting += len(data)
        if self._waiting >= _HIGH_WATER and not self._paused and self.channel is not None:
            self._paused = True
            self.channel.pause_reading()

    def eof_received(self) -> bool:
        """Note the end of both outputs; the input stays open."""
        self._end_outputs()
        return True

    def pause_writing(self) -> None:
        """Hold writers: the guest doesn't take more now."""
        self.writable.clear()

    def resume_writing(self) -> None:
        """Let writers go on."""
        self.writable.set()

    def exit_status_received(self, status: int) -> None:
        """Note how the process ended."""
        self._set_status(status)

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:  # noqa: ARG002
        """Note how the process ended, as a shell would say it."""
        self._set_status(signal_status(signal))

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end of the channel; everybody who waits learns it."""
        self.closed = True
        self.error = exc
        self._end_outputs()
        self.status_known.set()
        self.writable.set()

    async def read(self, datatype: int | None, limit: int) -> bytes:
        """Return up to `limit` bytes of an output, empty at its end."""
        output = self._output(datatype)
        while not output.chunks:
            if self._ended:
                return b""
            output.news.clear()
            await output.news.wait()
        data = output.take(limit)
        self._waiting -= len(data)
        if self._paused and self._waiting <= _LOW_WATER and self.channel is not None:
            self._paused = False
            self.channel.resume_reading()
        return data

    def _output(self, datatype: int | None) -> Output:
        return self._stderr if datatype == EXTENDED_DATA_STDERR else self._stdout

    def _set_status(self, status: int) -> None:
        self.status = status
        self.status_known.set()

    def _end_outputs(self) -> None:
        self._ended = True
        self._stdout.news.set()
        self._stderr.news.set()


class Process:
    """A process in a guest. One reader per output and one writer at a time.

    Both outputs share one SSH window: who reads only one of them may wait for ever while the other is full.
    """

    def __init__(self, session: ProcessSession) -> None:
        if session.channel is None:  # pragma: no cover - a session is given away after it was opened
            raise RuntimeError("the session has no channel")
        self._session = session
        self._channel = session.channel

    @property
    def is_lost(self) -> bool:
        """It ends with its connection."""
        return False

    async def write(self, data: bytes) -> None:
        """Pass bytes to the process's input; return when the channel has room for more.

        When cancelled, the bytes may or may not have been passed on.

        Raises:
            InputClosedError: The process does not take input any more. Its status tells why.
        """
        await self._session.writable.wait()
        try:
            self._channel.write(data)
        except OSError as error:
            raise InputClosedError("the process takes no more input") from error
        await self._session.writable.wait()

    def write_eof(self) -> None:
        """End the process's input. Allowed at any time, also twice."""
        if not self._session.closed:
            self._channel.write_eof()

    async def read_stdout(self, limit: int) -> bytes:
        """Return up to `limit` bytes, empty at the end. Who does not read stops the guest's writer."""
        return await self._session.read(_STDOUT, limit)

    async def read_stderr(self, limit: int) -> bytes:
        """Return up to `limit` bytes, empty at the end. With a PTY it ends without any."""
        return await self._session.read(EXTENDED_DATA_STDERR, limit)

    def resize(self, rows: int, columns: int, width: int = 0, height: int = 0) -> None:
        """Tell the terminal's new size. Ignored once the process has ended, or without a PTY."""
        if not self._session.closed:
            self._channel.change_terminal_size(columns, rows, width, height)

    def send_signal(self, name: str) -> None:
        """Send a signal, by its name without SIG, to the process group. Ignored once it has ended.

        sshd knows the thirteen signals of RFC 4254 (ABRT, ALRM, FPE, HUP, ILL, INT, KILL, PIPE, QUIT, SEGV,
        TERM, USR1, USR2) and drops others.
        """
        if self._session.status is None and not self._session.closed:
            self._channel.send_signal(name)

    async def wait(self) -> int:
        """Return the exit status; 128+n when signal n ended the process.

        Returns as soon as the guest tells it. Output may still come then, and as long as a background
        process holds the pipes, its end does not come.

        Raises:
            LinkLostError: The connection ended first.
            StatusLostError: The channel was closed, here or there, without a status.
        """
        session = self._session
        await session.status_known.wait()
        if session.status is not None:
            return session.status
        if session.error is not None:
            raise LinkLostError("the connection to the guest was lost", detail=str(session.error))
        raise StatusLostError("the process ended without an exit status")

    async def aclose(self) -> None:
        """Close the channel. Does not wait for the guest; may be called twice.

        What the process does then is its business: a terminal hangs up, pipes break.
        """
        if not self._session.closed:
            self._channel.abort()
            # The library tells the end when the guest has closed too, which a running process may delay.
            self._session.connection_lost(None)
        await asyncio.sleep(0)  # the packet goes out before the caller goes on


def signal_status(name: str) -> int:
    """Return the exit status that a shell gives for a signal's name as SSH says it.

    sshd names only the thirteen signals of RFC 4254 and calls every other one ``SIG@openssh.com``, whose
    number can't be known: 128, the base, stands for these.
    """
    return 128 + _SIGNALS.get(name.removeprefix("SIG"), 0)
