"""The holder of a claude-vm guest: it owns the terminals and pipes of sessions, so that they outlive SSH.

It runs as the guest's user, started by the guest helper. The supervisor reaches it through its SSH
connection, at a unix socket. A shell is started ahead (*primed*): it reads its profile and then waits at
descriptor 9 for the id of the session that it becomes (the other half is the launcher, ``session``). Which
program then runs, with which words and which environment, lies in files; the holder knows nothing of it.

What a session writes is kept until it is acknowledged, with the offset of its first byte, and its exit
status is kept. So a supervisor that comes back reads on where it stopped. What is kept is bounded: a session
with pipes then waits, so that nothing is lost; on a terminal that nobody watches the oldest output goes, so
that the program does not stop.

Frames, both ways: a letter, the length of the rest (4 bytes, big endian), the rest. To the holder:

    P  {"kind": "pty" or "pipes", "term": text}   connect to a primed shell; made when there is none
    T  {"session": id, "out": n, "err": n}        connect to a session, from these offsets (null: all)
    L                                             list the sessions
    S  {"session": id, "size": [4 numbers]}       become this session (rows, columns, width, height)
    I  bytes                                      for its input, at most `INPUT_WINDOW` ahead of C
    E                                             its input ends
    W  4 numbers of 2 bytes                       the terminal's size
    K  name                                       send a signal, without SIG, to its process group
    A  2 numbers of 8 bytes                       so much of stdout and stderr has arrived, in all

From the holder:

    R                    the shell waits for S
    O, F  8 bytes, data  stdout or stderr, from this offset on
    Z  1 or 2            that output has ended
    C  8 bytes           so much of the input was passed on, in all
    X  4 bytes           the exit status (128+n for signal n); output may still come
    L  JSON              the sessions
    !  text              refused; the connection ends

One connection is for one shell; a newer one to the same session takes its place.

One file, standard library only, because it is part of the guest's image. The simulated driver runs the same
code.
"""
# ruff: noqa: INP001

import fcntl
import json
import os
import pwd
import selectors
import signal
import socket
import struct
import sys
import termios
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

FRAME_LIMIT = 1 << 17
CHUNK = 1 << 16
KEPT = 1 << 20
"""Bytes of each output that are kept without an acknowledgement."""
INPUT_WINDOW = 1 << 18
INPUT_REPORT = 1 << 15
OUT_QUEUE = 1 << 18
"""Bytes that wait for a connection before it is given more output."""
MOST_QUEUED = 1 << 19
"""Bytes that wait for a connection before nothing more is taken from it: it asks, and reads no answer."""
MAX_SHELLS = 64
MAX_CONNECTIONS = 128
CONTROL = 9
LIBRARY = os.path.dirname(os.path.abspath(__file__))
"""Where the launcher is: beside this program."""
PASSED_ON = ("HOME", "CLAUDE_VM_RUN")
"""Variables of the holder that shells get, where they stand for other places than a guest's."""
TERM = "xterm-256color"
_TERMINAL_PIECE = 4096
_PROFILE_READS = 64
_EXIT_POLL_S = 0.05
_SIGNALS = [number for number in range(1, 32) if number not in {signal.SIGKILL, signal.SIGSTOP}]
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

Handler = Callable[[int], None]


class RefusedError(Exception):
    """What a connection asked for can't be done; the text goes back."""


class Loop:
    """Waits for descriptors and calls whom they concern. One thread; only `call` may come from others."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._calls: deque[Callable[[], None]] = deque()
        self._timers: dict[object, Callable[[], None]] = {}
        reader, self._waker = socket.socketpair()
        for end in (reader, self._waker):
            end.setblocking(False)
        self._reader = reader
        self.watch(reader.fileno(), selectors.EVENT_READ, self._wake)

    def watch(self, descriptor: int, events: int, handler: Handler) -> None:
        """Call `handler` with the events that are ready; 0 events: no more."""
        known = descriptor in self._selector.get_map()
        if not events:
            if known:
                self._selector.unregister(descriptor)
        elif known:
            self._selector.modify(descriptor, events, handler)
        else:
            self._selector.register(descriptor, events, handler)

    def poll(self, key: object, check: Callable[[], None] | None) -> None:
        """Call `check` several times a second, until None takes its place."""
        if check is None:
            self._timers.pop(key, None)
        else:
            self._timers[key] = check

    def call(self, function: Callable[[], None]) -> None:
        """Call `function` in the loop's thread, soon."""
        self._calls.append(function)
        with suppress(BlockingIOError):
            self._waker.send(b"w")

    def _wake(self, _: int) -> None:
        with suppress(BlockingIOError):
            self._reader.recv(CHUNK)
        while self._calls:
            self._calls.popleft()()

    def turn(self) -> None:
        """Wait once, and serve what is ready."""
        for key, ready in self._selector.select(_EXIT_POLL_S if self._timers else None):
            # An earlier handler of this round may have closed it, and another may have its number now.
            if self._selector.get_map().get(key.fd) == key:
                handler: Handler = key.data
                handler(ready)
        for check in list(self._timers.values()):
            check()

    def close(self) -> None:
        """Give the loop's own descriptors back."""
        self._selector.close()
        self._reader.close()
        self._waker.close()


class Kept:
    """The last part of an output: `data` begins at the offset `base`."""

    def __init__(self) -> None:
        self.base = 0
        self.data = bytearray()
        self.ended = False

    @property
    def end(self) -> int:
        """The offset behind the last byte."""
        return self.base + len(self.data)

    def drop_to(self, offset: int) -> None:
        """Forget what comes before an offset."""
        count = min(max(offset - self.base, 0), len(self.data))
        del self.data[:count]
        self.base += count


class Output:
    """One output of a shell, read from a descriptor as long as there is room."""

    def __init__(self, shell: "Shell", descriptor: int, letter: bytes) -> None:
        self.shell = shell
        self.descriptor = descriptor
        self.letter = letter
        self.kept = Kept()
        self.sent = 0
        self.told_end = False
        os.set_blocking(descriptor, False)
        self.listen()

    def listen(self) -> None:
        """Read, or not, as there is room."""
        if self.kept.ended:
            return
        room = len(self.kept.data) < KEPT or self.overwrites
        events = selectors.EVENT_READ if room else 0
        self.shell.watch(self.descriptor, events, self._read)

    @property
    def overwrites(self) -> bool:
        """Whether the oldest output goes when there is no room: on a terminal that nobody watches."""
        return self.shell.connection is None and self.shell.kind == "pty"

    def _read(self, _: int) -> None:
        try:
            data = os.read(self.descriptor, CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # EIO is how a terminal ends
        if not data:
            self.end()
            return
        self.kept.data += data
        if self.overwrites and len(self.kept.data) > KEPT:
            self.kept.drop_to(self.kept.end - KEPT)
            self.sent = max(self.sent, self.kept.base)
        self.listen()
        self.shell.flush()

    def acknowledge(self, offset: int) -> None:
        """What comes before an offset has arrived."""
        self.kept.drop_to(min(offset, self.sent))
        self.listen()

    def end(self) -> None:
        """Nothing more comes."""
        if not self.kept.ended:
            self.shell.watch(self.descriptor, 0, self._read)
            self.kept.ended = True
            self.shell.flush()

    def go_back(self, offset: int | None) -> None:
        """Send from an offset on, or from the first byte that is kept."""
        wanted = self.kept.base if offset is None else offset
        self.sent = min(max(wanted, self.kept.base), self.kept.end)
        self.told_end = False
        self.listen()

    def next_frame(self) -> bytes:
        """Return the next frame for the connection, or nothing."""
        start = self.sent - self.kept.base
        data = self.kept.data[start : start + CHUNK]
        if not data:
            if not self.kept.ended or self.told_end:
                return b""
            self.told_end = True
            return encode(b"Z", b"1" if self.letter == b"O" else b"2")
        frame = encode(self.letter, struct.pack(">Q", self.sent) + data)
        self.sent += len(data)
        return frame


class Shell:
    """A login shell that waits for its session, then the session itself, then what is left of it."""

    def __init__(self, holder: "Holder", kind: str, term: str) -> None:
        self.holder = holder
        self.kind = kind
        self.term = term
        self.session = ""
        self.ready = False
        self.status: int | None = None
        self.connection: Connection | None = None
        self.consumed = 0
        self._reported = 0
        self._input = bytearray()
        self._input_ends = False
        self._descriptors: set[int] = set()
        self._terminal = ""
        self.outputs: list[Output] = []
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
        self._pidfd = _open_pidfd(self.pid)
        if self._pidfd is None:
            holder.loop.poll(self, lambda: self._reap(0))
        else:
            self._keep(self._pidfd)
            self.watch(self._pidfd, selectors.EVENT_READ, self._reap)
        self.watch(self._control, selectors.EVENT_READ, self._hear_ready)

    def _keep(self, descriptor: int) -> int:
        """Note a descriptor that is closed at the end."""
        self._descriptors.add(descriptor)
        return descriptor

    def watch(self, descriptor: int, events: int, handler: Handler) -> None:
        """Watch one of this shell's descriptors."""
        self.holder.loop.watch(descriptor, events, handler)

    def _on_terminal(self, control: socket.socket) -> int:
        master, slave = os.openpty()
        try:
            # One descriptor for each way, so that each can be watched by itself.
            self.outputs = [Output(self, self._keep(master), b"O")]
            self._feed = self._keep(fcntl.fcntl(master, fcntl.F_DUPFD_CLOEXEC, 0))
            self._terminal = name = os.ttyname(slave)
            # The profile gets no input here either: whoever reads in it is told its end. What nobody took is
            # thrown away before the session begins.
            os.write(self._feed, b"\4" * _PROFILE_READS)
            # The leader of a session gets the first terminal that it opens.
            opens = [(os.POSIX_SPAWN_OPEN, number, name, os.O_RDWR, 0) for number in range(3)]
            return self._spawn(
                self.holder.terminal_argv, opens, control, {"TERM": self.term, "SSH_TTY": name}
            )
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
            self.outputs = [Output(self, out, b"O"), Output(self, err, b"F")]
            # The profile gets no input, and writes to stderr; the launcher takes 3 and 4.
            actions: list[Any] = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
            for target, source in enumerate((stderr, stderr, stdin, stdout), 1):
                high = passed(fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, 32))
                actions.append((os.POSIX_SPAWN_DUP2, high, target))
            return self._spawn(self.holder.pipes_argv, actions, control, {})

    def _spawn(
        self, argv: Sequence[str], actions: list[Any], control: socket.socket, environment: Mapping[str, str]
    ) -> int:
        high = fcntl.fcntl(control.fileno(), fcntl.F_DUPFD_CLOEXEC, 32)
        try:
            return os.posix_spawn(
                argv[0],
                list(argv),
                {**self.holder.environment, **environment},
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
                self.ready = True
                self.tell(b"R")
                return
        self.watch(self._control, 0, self._hear_ready)

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
        if self._pidfd is None:
            self.holder.loop.poll(self, None)
        else:
            self.watch(self._pidfd, 0, self._reap)
        self.flush()
        self.tell(b"X", struct.pack(">I", self.status))
        if not self.session:
            self.close()

    # What the connection asks for.

    def become(self, session: str, size: Sequence[int]) -> None:
        """Be a session: its launcher goes on.

        Raises:
            RefusedError: The shell is a session already, or has ended.
        """
        if self.session or self.status is not None or not self.ready:
            raise RefusedError("the shell does not wait for a session")
        if any(shell.session == session for shell in self.holder.shells):
            raise RefusedError("there is a session of this name")
        self.resize(size)
        self.session = session
        self.watch(self._control, 0, self._hear_ready)
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
            raise RefusedError("input before the session")
        if len(self._input) + len(data) > INPUT_WINDOW:
            raise RefusedError("more input than the window allows")
        self._input += data
        self._pass_on(0)

    def end_input(self) -> None:
        """End the input of a session with pipes; a terminal has no such end.

        Raises:
            RefusedError: There is no session yet.
        """
        if not self.session:
            raise RefusedError("input before the session")
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
        self.watch(self._feed, selectors.EVENT_WRITE if self._input else 0, self._pass_on)
        if self._input_ends and not self._input and self.kind == "pipes":
            self._drop(self._feed)

    def _consume(self, count: int) -> None:
        del self._input[:count]
        self.consumed += count
        if self.consumed - self._reported >= INPUT_REPORT or not self._input:
            self._reported = self.consumed
            self.tell(b"C", struct.pack(">Q", self.consumed))

    # The connection.

    def attach(self, connection: "Connection", offsets: Sequence[int | None]) -> None:
        """Serve a connection, from these offsets of the outputs on; a former one ends."""
        if self.connection is not None:
            self.connection.close()
        self.connection = connection
        for output, offset in zip(self.outputs, offsets, strict=False):
            output.go_back(offset)
        if len(self.outputs) == 1:
            self.tell(b"Z", b"2")
        self._reported = self.consumed
        self.tell(b"C", struct.pack(">Q", self.consumed))
        if self.ready and not self.session:
            self.tell(b"R")
        self.flush()
        if self.status is not None:
            self.tell(b"X", struct.pack(">I", self.status))

    def detach(self) -> None:
        """The connection is gone. A shell without a session goes with it."""
        self.connection = None
        if self.session:
            for output in self.outputs:
                output.listen()
        else:
            self.close()

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
            self.holder.loop.watch(descriptor, 0, self._pass_on)
            os.close(descriptor)

    def close(self) -> None:
        """End it with all that is in its process group, and forget it."""
        if self.status is None:
            with suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)
            with suppress(OSError):
                os.waitpid(self.pid, 0)
            self.status = 128 + signal.SIGKILL
        self.holder.loop.poll(self, None)
        for descriptor in list(self._descriptors):
            self._drop(descriptor)
        self.holder.shells.discard(self)
        if self.connection is not None:
            connection, self.connection = self.connection, None
            connection.shell = None
            connection.close()


class Connection:
    """One connection of the supervisor: frames in, frames out, at most one shell."""

    def __init__(self, holder: "Holder", stream: socket.socket) -> None:
        self.holder = holder
        self.shell: Shell | None = None
        self._stream = stream
        self._received = bytearray()
        self._waiting = bytearray()
        self._ends = False
        self._closed = False
        stream.setblocking(False)
        self._watch()

    @property
    def takes(self) -> bool:
        """Whether it can be given more output now."""
        return len(self._waiting) < OUT_QUEUE

    def send(self, frame: bytes) -> None:
        """Queue a frame, and write what the stream takes now."""
        self._waiting += frame
        self._write()

    def close(self) -> None:
        """End the connection; its shell, if it has one still, is told."""
        if self._closed:
            return
        self._closed = True
        self.holder.loop.watch(self._stream.fileno(), 0, self._serve)
        self._stream.close()
        self.holder.connections.discard(self)
        shell, self.shell = self.shell, None
        if shell is not None and shell.connection is self:
            shell.detach()

    def _watch(self) -> None:
        if not self._closed:
            events = selectors.EVENT_WRITE if self._waiting else 0
            if len(self._waiting) < MOST_QUEUED:
                events |= selectors.EVENT_READ
            self.holder.loop.watch(self._stream.fileno(), events, self._serve)

    def _serve(self, ready: int) -> None:
        if ready & selectors.EVENT_WRITE:
            self._write()
            if self.shell is not None:
                self.shell.flush()
        if ready & selectors.EVENT_READ and not self._closed:
            self._read()

    def _write(self) -> None:
        if self._closed:
            return
        try:
            while self._waiting:
                del self._waiting[: self._stream.send(self._waiting)]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if self._ends and not self._waiting:
            self.close()
        else:
            self._watch()

    def _read(self) -> None:
        try:
            data = self._stream.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._received += data
        try:
            while not self._closed and not self._ends and (frame := self._next_frame()):
                self._take(*frame)
        except RefusedError as error:
            self._refuse(str(error))
        except (ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError):
            self._refuse("a frame that can't be understood")

    def _next_frame(self) -> tuple[bytes, bytes] | None:
        if len(self._received) < _HEADER.size:
            return None
        letter, length = _HEADER.unpack_from(self._received)
        if length > FRAME_LIMIT:
            raise RefusedError("a frame that is too long")
        if len(self._received) < _HEADER.size + length:
            return None
        payload = bytes(self._received[_HEADER.size : _HEADER.size + length])
        del self._received[: _HEADER.size + length]
        return letter, payload

    def _refuse(self, reason: str) -> None:
        self._ends = True
        self.send(encode(b"!", reason.encode()))

    def _take(self, letter: bytes, payload: bytes) -> None:
        if letter == b"L":
            self.send(encode(b"L", json.dumps(self.holder.listing()).encode()))
        elif letter in b"PT" and self.shell is None:
            self._connect(letter, json.loads(payload))
        elif self.shell is None:
            raise RefusedError("no shell is connected")
        else:
            self._command(self.shell, letter, payload)

    def _connect(self, letter: bytes, request: dict[str, Any]) -> None:
        if letter == b"P":
            shell = self.holder.primed(request["kind"], request["term"])
            offsets: list[int | None] = [None, None]
        else:
            shell = self.holder.session(request["session"])
            offsets = [_offset(request.get(name)) for name in ("out", "err")]
        self.shell = shell
        shell.attach(self, offsets)

    def _command(self, shell: Shell, letter: bytes, payload: bytes) -> None:
        match letter:
            case b"S":
                request = json.loads(payload)
                shell.become(_session_id(request["session"]), _size(request["size"]))
            case b"I":
                shell.feed(payload)
            case b"E":
                shell.end_input()
            case b"W":
                shell.resize(struct.unpack(">HHHH", payload))
            case b"K":
                shell.kill(payload.decode("ascii"))
            case b"A":
                for output, offset in zip(shell.outputs, struct.unpack(">QQ", payload), strict=False):
                    output.acknowledge(offset)
            case _:
                raise RefusedError("an unknown frame")


class Holder:
    """All shells of one guest.

    `terminal_argv` and `pipes_argv` are the commands of the two kinds of shells, absolute; `environment` is
    what every shell is given.
    """

    def __init__(
        self,
        loop: Loop,
        *,
        terminal_argv: Sequence[str],
        pipes_argv: Sequence[str],
        environment: Mapping[str, str],
    ) -> None:
        self.loop = loop
        self.terminal_argv = terminal_argv
        self.pipes_argv = pipes_argv
        self.environment = dict(environment)
        self.shells: set[Shell] = set()
        self.connections: set[Connection] = set()

    def accept(self, stream: socket.socket) -> None:
        """Serve a connection."""
        if len(self.connections) >= MAX_CONNECTIONS:
            stream.close()
            return
        self.connections.add(Connection(self, stream))

    def prime(self, kind: str, term: str = TERM) -> Shell:
        """Start a shell that waits.

        Raises:
            RefusedError: There are too many, there is no such kind, or it can't be started.
        """
        if kind not in {"pty", "pipes"} or not (term.isascii() and term.isprintable() and len(term) <= 64):
            raise RefusedError("no such kind of shell")
        if len(self.shells) >= MAX_SHELLS:
            raise RefusedError("too many shells")
        try:
            shell = Shell(self, kind, term)
        except OSError as error:
            raise RefusedError(f"no shell can be started: {error.strerror}") from error
        self.shells.add(shell)
        return shell

    def primed(self, kind: str, term: str) -> Shell:
        """Return a shell that waits and that nobody has, made anew when there is none for this terminal.

        Raises:
            RefusedError: As `prime`.
        """
        for shell in list(self.shells):
            if shell.kind == kind and not shell.session and shell.connection is None and shell.status is None:
                if kind == "pipes" or shell.term == term:
                    return shell
                shell.close()
        return self.prime(kind, term)

    def session(self, name: str) -> Shell:
        """Return a session's shell.

        Raises:
            RefusedError: There is none.
        """
        for shell in self.shells:
            if shell.session == name and name:
                return shell
        raise RefusedError("no such session")

    def listing(self) -> list[dict[str, Any]]:
        """Return the sessions that there are, also ended ones."""
        return [{"session": s.session, "kind": s.kind, "status": s.status} for s in self.shells if s.session]

    def close(self) -> None:
        """End all shells."""
        for shell in list(self.shells):
            shell.close()
        for connection in list(self.connections):
            connection.close()


_HEADER = struct.Struct(">cI")


def encode(letter: bytes, payload: bytes = b"") -> bytes:
    """Return a frame."""
    return _HEADER.pack(letter, len(payload)) + payload


def _session_id(name: str) -> str:
    if not (name.isascii() and name.replace("-", "").isalnum() and len(name) <= 64):
        raise RefusedError("not a session's id")
    return name


def _offset(value: object) -> int | None:
    if value is not None and type(value) is not int:
        raise RefusedError("not an offset")
    return value


def _size(values: Sequence[object]) -> list[int]:
    size = [value for value in values if type(value) is int and 0 <= value <= 0xFFFF]
    if len(size) != 4 or len(values) != 4:
        raise RefusedError("not a size")
    return size


def _open_pidfd(pid: int) -> int | None:
    """Return a descriptor that tells a child's end, where the system has such."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def main() -> None:
    """Serve at the descriptor that the helper names, for ever; it says on stdin what else it wants.

    ``prime``: start the usual shells, because a supervisor will ask for them soon. ``forget``: end all,
    before a snapshot is taken.
    """
    user = pwd.getpwuid(os.getuid())
    os.chdir(os.environ.get("HOME", user.pw_dir))
    os.umask(0o022)
    loop = Loop()
    holder = Holder(
        loop,
        terminal_argv=("/bin/bash", "--rcfile", f"{LIBRARY}/session.rc", "-i"),
        pipes_argv=("/bin/bash", "-l", f"{LIBRARY}/session"),
        environment={
            "HOME": user.pw_dir,
            "USER": user.pw_name,
            "LOGNAME": user.pw_name,
            "SHELL": user.pw_shell,
            "PATH": _PATH,
            **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
        },
    )
    listener = socket.socket(fileno=int(sys.argv[1]))
    listener.set_inheritable(False)
    listener.setblocking(False)

    def accept(_: int) -> None:
        with suppress(OSError):
            holder.accept(listener.accept()[0])

    def listen_to_helper(_: int) -> None:
        words = os.read(0, CHUNK)
        if not words:
            loop.watch(0, 0, listen_to_helper)
        for word in words.split():
            if word == b"forget":
                holder.close()
            elif word == b"prime":
                with suppress(RefusedError):
                    holder.prime("pty")
                    holder.prime("pipes")

    loop.watch(listener.fileno(), selectors.EVENT_READ, accept)
    loop.watch(0, selectors.EVENT_READ, listen_to_helper)
    while True:
        loop.turn()


if __name__ == "__main__":
    main()
