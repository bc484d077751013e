"""A shell of the holder: a process with its terminal or pipes."""

import fcntl
import json
import os
import selectors
import signal
import socket
import struct
import termios
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any, Protocol

from .frames import FrameError, encode
from .loop import Loop, OnReady
from .output import CHUNK, Output
from .remaining import CHECK_S, CHECKS, Orphans, remaining

INPUT_WINDOW = 1 << 18
INPUT_REPORT = 1 << 15
COUNT_REPORT = 32
"""Frames that are counted before it is told."""
ALONE_S = 20.0
"""How long a terminal is kept as it is for a supervisor that may come back, in seconds."""
CONTROL = 9
_TERMINAL_PIECE = 4096
_PROFILE_READS = 64
_SIGNALS = [number for number in range(1, 32) if number not in {signal.SIGKILL, signal.SIGSTOP}]


class Peer(Protocol):
    """Who is connected to a shell."""

    @property
    def takes(self) -> bool:
        """Whether it can be given more output now."""

    def send(self, frame: bytes) -> None:
        """Give it a frame."""

    def close(self) -> None:
        """End the connection."""


class HeldShell:
    """A login shell that waits for its session, then the session itself, then what is left of it.

    `argv` and `environment` are its command. `freed` is called when it waits, and when it is closed: the next
    one may be started.

    Raises:
        OSError: It can't be started.
    """

    def __init__(
        self,
        loop: Loop,
        orphans: Orphans,
        kind: str,
        term: str,
        *,
        argv: Sequence[str],
        environment: Mapping[str, str],
        freed: Callable[["HeldShell"], None],
    ) -> None:
        self.kind = kind
        self.term = term
        self.session = ""
        self.ready = False
        self.closed = False
        self.status: int | None = None
        self.connection: Peer | None = None
        self.consumed = 0
        self._loop = loop
        self._orphans = orphans
        self._argv = argv
        self._environment = environment
        self._freed = freed
        self._counted = 0
        self._reported = (0, 0)
        self._input = bytearray()
        self._input_ends = False
        self._descriptors: set[int] = set()
        self._terminal = ""
        self.outputs: list[Output] = []
        self._known: frozenset[int] = frozenset()
        self._checks = CHECKS
        ours, theirs = socket.socketpair()
        self._control = self._keep(ours.detach())
        os.set_blocking(self._control, False)
        start = self._on_terminal if kind == "pty" else self._on_pipes
        try:
            self.pid = start(theirs)
        except BaseException:
            for descriptor in list(self._descriptors):
                self._drop(descriptor)
            raise
        finally:
            theirs.close()
        orphans.own.add(self.pid)
        self._pidfd = _open_pidfd(self.pid)
        if self._pidfd is None:
            loop.poll(self, lambda: self._reap(0))
        else:
            self._keep(self._pidfd)
            self._watch(self._pidfd, selectors.EVENT_READ, self._reap)
        self._watch(self._control, selectors.EVENT_READ, self._hear_ready)

    def _keep(self, descriptor: int) -> int:
        """Note a descriptor that is closed at the end."""
        self._descriptors.add(descriptor)
        return descriptor

    def _watch(self, descriptor: int, events: int, on_ready: OnReady) -> None:
        """Watch one of this shell's descriptors."""
        self._loop.watch(descriptor, events, on_ready)

    def _on_terminal(self, control: socket.socket) -> int:
        master, slave = os.openpty()
        try:
            # One descriptor for each way, so that each can be watched by itself.
            self.outputs = [Output(self._loop, self._keep(master), b"O", self.flush)]
            self._feed = self._keep(fcntl.fcntl(master, fcntl.F_DUPFD_CLOEXEC, 0))
            self._terminal = name = os.ttyname(slave)
            # The profile gets no input here either: whoever reads in it is told its end. What nobody took is
            # thrown away before the session begins.
            os.write(self._feed, b"\4" * _PROFILE_READS)
            # The leader of a session gets the first terminal that it opens.
            opens = [(os.POSIX_SPAWN_OPEN, number, name, os.O_RDWR, 0) for number in range(3)]
            return self._spawn(opens, control, {"TERM": self.term, "SSH_TTY": name})
        finally:
            os.close(slave)

    def _on_pipes(self, control: socket.socket) -> int:
        with ExitStack() as theirs:

            def passed(descriptor: int) -> int:
                theirs.callback(os.close, descriptor)
                return descriptor

            stdin, feed = os.pipe()
            stdin, self._feed = passed(stdin), self._keep(feed)
            out, stdout = os.pipe()
            out, stdout = self._keep(out), passed(stdout)
            err, stderr = os.pipe()
            err, stderr = self._keep(err), passed(stderr)
            os.set_blocking(self._feed, False)
            self.outputs = [
                Output(self._loop, descriptor, letter, self.flush)
                for descriptor, letter in ((out, b"O"), (err, b"F"))
            ]
            # The profile gets no input, and writes to stderr; the launcher takes 3 and 4.
            actions: list[Any] = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
            for target, source in enumerate((stderr, stderr, stdin, stdout), 1):
                high = passed(fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, 32))
                actions.append((os.POSIX_SPAWN_DUP2, high, target))
            return self._spawn(actions, control, {})

    def _spawn(self, actions: list[Any], control: socket.socket, environment: Mapping[str, str]) -> int:
        high = fcntl.fcntl(control.fileno(), fcntl.F_DUPFD_CLOEXEC, 32)
        try:
            return os.posix_spawn(
                self._argv[0],
                list(self._argv),
                {**self._environment, **environment},
                file_actions=[*actions, (os.POSIX_SPAWN_DUP2, high, CONTROL)],
                setsid=True,
                setsigmask=[],
                setsigdef=_SIGNALS,
            )
        finally:
            os.close(high)

    # What the shell tells.

    def _hear_ready(self, _: int) -> None:
        with suppress(BlockingIOError, ConnectionError):
            if os.read(self._control, 1):
                self._forget_typed()
                self._known = frozenset(self._orphans.listed())
                self.ready = True
                self.tell(b"R")
                self._freed(self)
                return
        self._watch(self._control, 0, self._hear_ready)

    def _forget_typed(self) -> None:
        if self._terminal:
            with suppress(OSError, termios.error):
                slave = os.open(self._terminal, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
                try:
                    termios.tcflush(slave, termios.TCIFLUSH)
                finally:
                    os.close(slave)

    def _reap(self, _: int) -> None:
        with suppress(ChildProcessError):
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if not pid:
                return
            code = os.waitstatus_to_exitcode(status)
            self.status = code if code >= 0 else 128 - code
        if self.status is None:
            self.status = 255
        self._orphans.own.discard(self.pid)
        if self._pidfd is None:
            self._loop.poll(self, None)
        else:
            self._watch(self._pidfd, 0, self._reap)
        self.flush()
        self._orphans.collect()
        leaves = bool(self.session and self._left())
        if leaves:
            self.tell(b"B")
        self.tell(b"X", struct.pack(">I", self.status))
        if leaves:
            self._loop.repeat(self, CHECK_S, self._tell_remaining)
        elif not self.session:
            self.close()

    def _left(self) -> list[int]:
        """Return the processes that were left behind since this shell was ready."""
        return [process for process in self._orphans.listed() if process not in self._known]

    def _tell_remaining(self) -> None:
        """Tell what works yet, when there was time for it to end."""
        self._orphans.collect()
        left = self._left()
        self._checks -= 1
        if not left or not self._checks:
            self._loop.repeat(self, 0, None)
            self.tell(b"B", json.dumps(remaining(left)).encode())

    # What the connection asks for.

    def become(self, session: str, size: Sequence[int]) -> None:
        """Be a session: its launcher goes on.

        Raises:
            RefusedError: The shell is a session already, or has ended.
        """
        if self.session or self.status is not None or not self.ready:
            raise FrameError("the shell does not wait for a session")
        self.resize(size)
        self.session = session
        self._watch(self._control, 0, self._hear_ready)
        with suppress(OSError):
            os.write(self._control, session.encode() + b"\n")
        self._drop(self._control)

    def resize(self, size: Sequence[int]) -> None:
        """Set the size of the terminal; the kernel tells its foreground."""
        if self.kind == "pty" and any(size):
            with suppress(OSError, struct.error):
                fcntl.ioctl(self._feed, termios.TIOCSWINSZ, struct.pack("HHHH", *size))

    def kill(self, name: str) -> None:
        """Send a signal to the process group of the session."""
        number = getattr(signal, f"SIG{name}", None)
        if self.session and self.status is None and number is not None:
            with suppress(OSError):
                os.killpg(self.pid, number)

    def feed(self, data: bytes) -> None:
        """Take input.

        Raises:
            RefusedError: More than the window allows, or there is no session yet that it could be for.
        """
        if not self.session:
            raise FrameError("input before the session")
        if len(self._input) + len(data) > INPUT_WINDOW:
            raise FrameError("more input than the window allows")
        self._input += data
        self._pass_on(0)

    def end_input(self) -> None:
        """End the input of a session with pipes; a terminal has no such end.

        Raises:
            RefusedError: There is no session yet.
        """
        if not self.session:
            raise FrameError("input before the session")
        self._input_ends = True
        self._pass_on(0)

    def _pass_on(self, _: int) -> None:
        """Write what the session takes of its input."""
        if self._feed not in self._descriptors:
            self._consume(len(self._input))  # nobody reads it any more
            return
        # A terminal takes no more at a time.
        limit = _TERMINAL_PIECE if self.kind == "pty" else CHUNK
        try:
            while self._input:
                self._consume(os.write(self._feed, self._input[:limit]))
        except BlockingIOError:
            pass
        except OSError:
            self._consume(len(self._input))
            self._drop(self._feed)
            return
        self._watch(self._feed, selectors.EVENT_WRITE if self._input else 0, self._pass_on)
        if self._input_ends and not self._input and self.kind == "pipes":
            self._drop(self._feed)

    def _consume(self, count: int) -> None:
        del self._input[:count]
        self.consumed += count
        self._report()

    def count(self) -> None:
        """Note that a frame came which must not come twice."""
        self._counted += 1
        self._report()

    def _report(self, at_once: bool = False) -> None:
        consumed, counted = self._reported
        # Not for each key: the echo would wait behind it until it has arrived (Nagle's algorithm in sshd).
        if at_once or self.consumed - consumed >= INPUT_REPORT or self._counted - counted >= COUNT_REPORT:
            self._reported = (self.consumed, self._counted)
            self.tell(b"C", struct.pack(">QQ", *self._reported))

    # The connection.

    def attach(self, connection: Peer, offsets: Sequence[int | None]) -> None:
        """Serve a connection, from these offsets of the outputs on; a former one ends."""
        if self.connection is not None:
            self.connection.close()
        self.connection = connection
        self._loop.repeat(self.outputs[0], 0, None)
        for output, offset in zip(self.outputs, offsets, strict=False):
            output.overwrites = False
            output.go_back(offset)
        if len(self.outputs) == 1:
            self.tell(b"Z", b"2")
        self._report(at_once=True)
        if self.ready and not self.session:
            self.tell(b"R")
        self.flush()
        if self.status is not None:
            self.tell(b"X", struct.pack(">I", self.status))

    def detach(self) -> None:
        """The connection is gone. A shell without a session goes with it."""
        self.connection = None
        if self.session:
            self._loop.repeat(self.outputs[0], ALONE_S, self._give_up_waiting, first_s=ALONE_S)
        else:
            self.close()

    def _give_up_waiting(self) -> None:
        """Nobody has come back: what writes to a terminal shall not stand still."""
        self._loop.repeat(self.outputs[0], 0, None)
        for output in self.outputs:
            output.overwrites = self.kind == "pty"
            output.listen()

    def flush(self) -> None:
        """Give the connection what it takes of the outputs."""
        connection = self.connection
        if connection is None:
            return
        for output in self.outputs:
            while connection.takes and (frame := output.next_frame()):
                connection.send(frame)

    def tell(self, letter: bytes, payload: bytes = b"") -> None:
        """Send a frame to the connection, if there is one."""
        if self.connection is not None:
            self.connection.send(encode(letter, payload))

    def _drop(self, descriptor: int) -> None:
        if descriptor in self._descriptors:
            self._descriptors.discard(descriptor)
            self._watch(descriptor, 0, self._pass_on)
            os.close(descriptor)

    def close(self) -> None:
        """End it with all that is in its process group, and forget it."""
        if self.status is None:
            with suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)
            with suppress(OSError):
                os.waitpid(self.pid, 0)
            self.status = 128 + signal.SIGKILL
            self._orphans.own.discard(self.pid)
        self._loop.poll(self, None)
        self._loop.repeat(self, 0, None)
        self._loop.repeat(self.outputs[0], 0, None)
        for descriptor in list(self._descriptors):
            self._drop(descriptor)
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()
        self.closed = True
        self._freed(self)


def _open_pidfd(pid: int) -> int | None:
    """Return a descriptor that tells a child's end, where the system has such."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None
