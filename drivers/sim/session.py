"""One session channel of a simulated guest, as sshd would treat it."""

import asyncio
import contextlib
import fcntl
import os
import signal
import struct
import termios
from collections.abc import Callable
from subprocess import DEVNULL
from typing import IO, TYPE_CHECKING

import anyio
import asyncssh
from asyncssh.packet import Boolean, String, UInt32

if TYPE_CHECKING:
    from claude_vm.drivers.sim.guest import Guest

_CHUNK = 64 * 1024
_AT_ONCE = 4096  # a terminal takes no more
_MODES = {53: (3, termios.ECHO), 51: (3, termios.ICANON), 50: (3, termios.ISIG)}
"""Terminal modes that are honoured: opcode of RFC 4254 to the index and flag of termios."""


class GuestSession(asyncssh.SSHServerProcess[bytes]):
    """Runs one command with pipes or a terminal. SFTP is the library's own."""

    def __init__(self, guest: "Guest", files: Callable[..., asyncssh.SFTPServer]) -> None:
        super().__init__(self._serve, files, 3, False)
        self._guest = guest
        self._child: asyncio.subprocess.Process | None = None
        self._terminal: int | None = None
        self._gone = asyncio.Event()

    # sshd acts on these at once, whatever waits in the input; the library would queue them behind it.

    def signal_received(self, signal_name: str) -> None:
        """Send a signal to the command's process group."""
        number = getattr(signal, f"SIG{signal_name}", None)
        if self._child is not None and self._child.returncode is None and number is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, number)

    def terminal_size_changed(self, width: int, height: int, pixwidth: int, pixheight: int) -> None:
        """Set the size of the terminal; the kernel tells its foreground."""
        if self._terminal is not None:
            _set_size(self._terminal, (width, height, pixwidth, pixheight))

    def connection_lost(self, exc: Exception | None) -> None:
        """Hang up."""
        self._gone.set()
        super().connection_lost(exc)

    async def _serve(self, _: "asyncssh.SSHServerProcess[bytes]") -> None:
        channel = self.channel  # the library forgets it when the client has gone
        with contextlib.ExitStack() as descriptors:
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._cancel_when_gone, tasks.cancel_scope)
                    if channel.get_terminal_type() is None:
                        await self._run_with_pipes(descriptors)
                    else:
                        await self._run_on_terminal(descriptors)
                    tasks.cancel_scope.cancel()
            except* OSError:
                pass  # the client or a pipe went away, or the program can't be started: the channel ends
            finally:
                channel.close()
                if self._terminal is not None:
                    self._terminal = None
                    self.signal_received("HUP")

    async def _cancel_when_gone(self, scope: anyio.CancelScope) -> None:
        await self._gone.wait()
        scope.cancel()

    async def _run_with_pipes(self, ours: contextlib.ExitStack) -> None:
        with contextlib.ExitStack() as theirs:
            in_read, in_write = _pipe(theirs, ours)
            out_write, out_read = _pipe(theirs, ours, we_read=True)
            err_write, err_read = _pipe(theirs, ours, we_read=True)
            child = await self._spawn(in_read, out_write, err_write, self._guest.command(self.command))
        await self._carry(child, in_write, [(out_read, self.stdout), (err_read, self.stderr)])

    async def _run_on_terminal(self, ours: contextlib.ExitStack) -> None:
        master_fd, slave_fd = os.openpty()
        master = ours.enter_context(os.fdopen(master_fd, "r+b", 0))
        # Open until the child's end, because a master without any slave is at its own end.
        slave = ours.enter_context(os.fdopen(slave_fd, "r+b", 0))
        os.set_blocking(master_fd, False)
        _set_size(slave_fd, self.term_size)
        _set_modes(slave_fd, dict(self.term_modes))
        name = os.ttyname(slave_fd)
        self._terminal = master_fd
        # A session leader without a terminal gets the one that it opens; so no code runs after the fork.
        opens = ["/bin/sh", "-c", 'tty=$1; shift; exec "$@" <"$tty" >"$tty" 2>&1', "sh", name]
        argv = opens + self._guest.command(self.command)
        child = await self._spawn(DEVNULL, DEVNULL, DEVNULL, argv, terminal=name)
        await self._carry(child, master, [(master, self.stdout)], slave.close)

    async def _spawn(
        self, stdin: int, stdout: int, stderr: int, argv: list[str], *, terminal: str | None = None
    ) -> asyncio.subprocess.Process:
        env = self._guest.environment()
        if terminal is not None:
            env |= {"TERM": self.term_type or "dumb", "SSH_TTY": terminal}
        self._child = await self._guest.spawn(argv, env=env, stdin=stdin, stdout=stdout, stderr=stderr)
        return self._child

    async def _carry(
        self,
        child: asyncio.subprocess.Process,
        feed: IO[bytes],
        outputs: list[tuple[IO[bytes], "asyncssh.SSHWriter[bytes]"]],
        at_end: Callable[[], None] = lambda: None,
    ) -> None:
        async with anyio.create_task_group() as feeding:
            feeding.start_soon(self._feed, feed)
            async with anyio.create_task_group() as reading:
                for source, target in outputs:
                    reading.start_soon(_drain, source, target)
                await child.wait()
                self._guest.forget(child)
                at_end()
                self._tell_end(child.returncode or 0)
            feeding.cancel_scope.cancel()

    async def _feed(self, feed: IO[bytes]) -> None:
        try:
            while data := await self.stdin.read(_CHUNK):
                rest = memoryview(data)
                while rest:
                    await anyio.wait_writable(feed)
                    with contextlib.suppress(BlockingIOError):
                        rest = rest[os.write(feed.fileno(), rest[:_AT_ONCE]) :]
        except OSError:
            while await self.stdin.read(_CHUNK):
                pass  # nobody reads it any more; sshd takes it all the same
        if self._terminal is None:
            feed.close()

    def _tell_end(self, returncode: int) -> None:
        """Tell the status, but leave the channel open: background processes may go on writing."""
        if returncode >= 0:
            request, facts = b"exit-status", [UInt32(returncode)]
        else:
            name = signal.Signals(-returncode).name.removeprefix("SIG")
            request, facts = b"exit-signal", [String(name), Boolean(False), String(""), String("")]
        # The library's own exit() would close the channel, too.
        self.channel._send_request(request, *facts)  # noqa: SLF001


async def _drain(source: IO[bytes], target: "asyncssh.SSHWriter[bytes]") -> None:
    try:
        while True:
            await anyio.wait_readable(source)
            if not (data := os.read(source.fileno(), _CHUNK)):
                return
            target.write(data)
            await target.drain()
    except OSError:
        return  # EIO is how a terminal ends; a broken pipe is the client's


def _pipe(
    theirs: contextlib.ExitStack, ours: contextlib.ExitStack, *, we_read: bool = False
) -> tuple[int, IO[bytes]]:
    """Make a pipe; return the guest's descriptor, which blocks, and our end, which does not."""
    read_fd, write_fd = os.pipe()
    reader, writer = os.fdopen(read_fd, "rb", 0), os.fdopen(write_fd, "wb", 0)
    given, kept = (writer, reader) if we_read else (reader, writer)
    theirs.enter_context(given)
    ours.enter_context(kept)
    os.set_blocking(kept.fileno(), False)
    return given.fileno(), kept


def _set_size(fd: int, size: tuple[int, int, int, int]) -> None:
    columns, rows, width, height = size
    with contextlib.suppress(OSError):
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, width, height))


def _set_modes(fd: int, modes: dict[int, int]) -> None:
    attributes = termios.tcgetattr(fd)
    for opcode, value in modes.items():
        if opcode in _MODES:
            index, flag = _MODES[opcode]
            attributes[index] = attributes[index] | flag if value else attributes[index] & ~flag
    termios.tcsetattr(fd, termios.TCSANOW, attributes)
