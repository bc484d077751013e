"""The client's side of the protocol: a connection without any terminal. Standard library only.

It never waits once it is open: who relays streams waits for all of them at once.
"""

import os
import socket

from claude_vm.supervisor.wire.errors import ProtocolError, WireError
from claude_vm.supervisor.wire.framing import Frame, FrameReader, decode_json, encode_json
from claude_vm.supervisor.wire.messages import FROM_SERVER, MAX_INVOKE, PROTOCOL, FrameType
from claude_vm.supervisor.wire.peer import peer_uid
from claude_vm.supervisor.wire.version import VERSION

RECEIVE = 256 * 1024
"""Bytes taken from the socket at once, at most."""

ANSWER_S = 60.0
"""How long the daemon may take to answer HELLO, in seconds. It answers before it does anything else."""


class RefusedError(WireError):
    """The daemon does not serve us. `code`, message and `hint` are its own words."""

    def __init__(self, code: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint

    @classmethod
    def of(cls, payload: bytes) -> "RefusedError":
        """Return the refusal that a REFUSED tells.

        Raises:
            ProtocolError: It tells none.
        """
        refusal = decode_json(FrameType.REFUSED, payload)
        return cls(*(str(refusal.get(key, "")) for key in ("code", "message", "hint")))


class TooLargeError(WireError):
    """The command line and the environment together are more than can be passed on."""

    code = "too-large"

    def __init__(self) -> None:
        most = f"{MAX_INVOKE // (1024 * 1024)} MiB"
        super().__init__(
            f"the command line and the environment are too large to be passed on (at most {most})"
        )
        self.hint = "put long texts into a file of the project, and name that file"


class NoAnswerError(WireError):
    """There is a daemon's socket, but nobody answers properly."""

    code = "daemon-silent"


class HungUpError(NoAnswerError):
    """The daemon ended the connection before its HELLO, so it has not begun with the invocation."""


class DaemonConnection:
    """A connection to the daemon after its HELLO. Owns the socket.

    Frames that are put go out by `flush`; `receive` gives what came. `ended` tells that the daemon closed it.
    """

    def __init__(self, connection: socket.socket, reader: FrameReader, early: list[Frame]) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._reader = reader
        self._early = early
        self._outgoing = bytearray()
        self._deaf = False
        self.ended = False

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._socket.fileno()

    @property
    def pending(self) -> int:
        """How many bytes wait to be flushed."""
        return len(self._outgoing)

    @property
    def has_early_frames(self) -> bool:
        """Whether `receive` has frames without the socket being readable."""
        return bool(self._early)

    def put(self, frame: bytes) -> None:
        """Take a frame to be sent. Bounded by the callers: windows, and few signals."""
        if not self._deaf:
            self._outgoing += frame

    def flush(self) -> None:
        """Send as much as the socket takes now. A daemon that hears no more may still have said something."""
        while self._outgoing:
            try:
                with memoryview(self._outgoing) as view:
                    sent = self._socket.send(view[:RECEIVE])
            except BlockingIOError:
                return
            except OSError:
                self._deaf = True
                self._outgoing.clear()
                return
            del self._outgoing[:sent]

    def receive(self) -> list[Frame]:
        """Return the frames that came; sets `ended` at the end of the connection.

        Raises:
            ProtocolError: The daemon sent what it must not.
        """
        if self._early:
            frames, self._early = self._early, []
            return frames
        try:
            data = self._socket.recv(RECEIVE)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            self.ended = True
            return []
        return self._reader.feed(data)

    def close(self) -> None:
        """Close it: for the daemon we are gone."""
        self._socket.close()


def invoke(connection: socket.socket, invocation: dict[str, object]) -> DaemonConnection:
    """Send HELLO and INVOKE over a connected socket, and return the connection once the daemon welcomes us.

    Takes the socket over, also when it fails. Nothing is said to a process of another user: the invocation
    has secrets.

    Raises:
        RefusedError: The daemon says no.
        NoAnswerError: It isn't ours, says nothing, or nothing that can be understood.
        TooLargeError: The invocation is.
        ProtocolError: The answer is not allowed.
    """
    try:
        return _shake_hands(connection, invocation)
    except BaseException:
        connection.close()
        raise


def _shake_hands(connection: socket.socket, invocation: dict[str, object]) -> DaemonConnection:
    if peer_uid(connection) != os.getuid():
        raise NoAnswerError("the process at the daemon's socket is not yours")
    hello = {"protocol": PROTOCOL, "version": VERSION, "pid": os.getpid()}
    try:
        greeting = encode_json(FrameType.HELLO, hello) + encode_json(FrameType.INVOKE, invocation)
    except ProtocolError as error:
        raise TooLargeError from error
    connection.settimeout(ANSWER_S)
    reader = FrameReader(FROM_SERVER)
    frames = _exchange(connection, greeting, reader)
    kind, payload = frames[0]
    if kind is FrameType.REFUSED:
        raise RefusedError.of(payload)
    if kind is not FrameType.HELLO:
        raise NoAnswerError(f"the daemon began with {kind.name}")
    return DaemonConnection(connection, reader, frames[1:])


def _exchange(connection: socket.socket, greeting: bytes, reader: FrameReader) -> list[Frame]:
    """Return the first frames of the answer, at least one."""
    try:
        connection.sendall(greeting)
    except (BrokenPipeError, ConnectionResetError):
        pass  # refused before it had read all: why is there to be read
    except OSError as error:
        raise NoAnswerError(f"the daemon does not listen: {error}") from error
    frames: list[Frame] = []
    while not frames:
        try:
            data = connection.recv(RECEIVE)
        except ConnectionResetError as error:
            raise HungUpError(f"the daemon does not answer: {error}") from error
        except OSError as error:
            raise NoAnswerError(f"the daemon does not answer: {error}") from error
        if not data:
            raise HungUpError("the daemon hung up before it said anything")
        frames = reader.feed(data)
    return frames
