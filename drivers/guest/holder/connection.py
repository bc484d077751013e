"""The supervisor's connections to the holder."""

import json
import os
import selectors
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any

from . import frames
from .frames import FrameError, encode
from .holding import Holder
from .listening import EVERY_S, TABLES, listening_ports
from .shell import HeldShell

MAX_CONNECTIONS = 128

OUT_QUEUE = 1 << 18
"""Bytes that wait for a connection before it is given more output."""
MOST_QUEUED = 1 << 19
"""Bytes that wait for a connection before nothing more is taken from it: it asks, and reads no answer."""
_CHUNK = 1 << 16


class Connections:
    """All connections to one holder. `tables` are the files in which the system lists its TCP sockets."""

    def __init__(self, holder: Holder, tables: Sequence[str] = TABLES) -> None:
        self._holder = holder
        self._tables = tables
        self._open: set[Connection] = set()

    def accept(self, stream: socket.socket) -> None:
        """Serve a connection."""
        if len(self._open) >= MAX_CONNECTIONS:
            stream.close()
            return
        self._open.add(Connection(self._holder, stream, self._tables, self._open.discard))

    def close(self) -> None:
        """End them all."""
        for connection in list(self._open):
            connection.close()


class Connection:
    """One connection of the supervisor: frames in, frames out, at most one shell. `ended` is told its end."""

    def __init__(
        self,
        holder: Holder,
        stream: socket.socket,
        tables: Sequence[str],
        ended: Callable[["Connection"], None],
    ) -> None:
        self._holder = holder
        self._loop = holder.loop
        self._tables = tables
        self._ended = ended
        self.shell: HeldShell | None = None
        self._stream = stream
        self._received = bytearray()
        self._waiting = bytearray()
        self._ends = False
        self._closed = False
        self._ports: list[int] | None = None
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
        self._loop.watch(self._stream.fileno(), 0, self._serve)
        self._loop.repeat(self, 0, None)
        self._stream.close()
        self._ended(self)
        shell, self.shell = self.shell, None
        if shell is not None and shell.connection is self:
            shell.detach()

    def _watch(self) -> None:
        if not self._closed:
            events = selectors.EVENT_WRITE if self._waiting else 0
            if len(self._waiting) < MOST_QUEUED:
                events |= selectors.EVENT_READ
            self._loop.watch(self._stream.fileno(), events, self._serve)

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
            data = self._stream.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._received += data
        try:
            while not self._closed and not self._ends and (frame := frames.next_frame(self._received)):
                self._take(*frame)
        except FrameError as error:
            self._refuse(str(error))
        except (ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError):
            self._refuse("a frame that can't be understood")

    def _refuse(self, reason: str) -> None:
        self._ends = True
        self.send(encode(b"!", reason.encode()))

    def _take(self, letter: bytes, payload: bytes) -> None:
        if letter == b"L":
            self.send(encode(b"L", json.dumps(self._holder.listing()).encode()))
        elif letter == b"N":
            if not any(os.path.exists(table) for table in self._tables):
                raise FrameError("it is not known what is listened at")
            self._loop.repeat(self, EVERY_S, self._tell_ports)
        elif letter in b"PT" and self.shell is None:
            self._connect(letter, json.loads(payload))
        elif self.shell is None:
            raise FrameError("no shell is connected")
        else:
            self._command(self.shell, letter, payload)

    def _tell_ports(self) -> None:
        """Tell what is listened at, if it is not what was told before, and the stream takes it."""
        ports = listening_ports(self._tables)
        if ports != self._ports and self.takes:
            self._ports = ports
            self.send(encode(b"N", json.dumps(ports).encode()))

    def _connect(self, letter: bytes, request: dict[str, Any]) -> None:
        if letter == b"P":
            shell = self._holder.primed(request["kind"], request["term"])
            offsets: list[int | None] = [None, None]
        else:
            shell = self._holder.session(request["session"])
            offsets = [frames.offset(request.get(name)) for name in ("out", "err")]
        self.shell = shell
        shell.attach(self, offsets)

    def _command(self, shell: "HeldShell", letter: bytes, payload: bytes) -> None:
        match letter:
            case b"S":
                request = json.loads(payload)
                name, size = frames.session_id(request["session"]), frames.size(request["size"])
                self._holder.begin(shell, name, size)
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
                raise FrameError("an unknown frame")
        if letter in {b"I", b"E", b"W", b"K"}:
            shell.count()
