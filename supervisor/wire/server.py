"""The daemon's side of the protocol: accepts clients, and has each answered.

Whatever a client sends, the answer is an error and never a traceback, and what is kept for it is bounded: a
frame, a window for each stream, one size, one of each signal.
"""

import contextlib
import errno
import os
import socket
from collections.abc import Awaitable, Callable

import anyio
import msgspec
from anyio.abc import ByteStream, Listener, SocketAttribute, UNIXSocketStream

from claude_vm.supervisor.statuses import OUTPUT_CLOSED, SESSION_FAILED
from claude_vm.supervisor.wire.connected_client import Client
from claude_vm.supervisor.wire.error_text import error_text
from claude_vm.supervisor.wire.errors import OutputClosedError, ProtocolError
from claude_vm.supervisor.wire.escape import escape_line
from claude_vm.supervisor.wire.flow import Outbox
from claude_vm.supervisor.wire.framing import Frame, FrameReader, encode_json
from claude_vm.supervisor.wire.messages import FROM_CLIENT, MAX_DATA, PROTOCOL, FrameType
from claude_vm.supervisor.wire.peer import peer_uid
from claude_vm.supervisor.wire.records import (
    Hello,
    Invocation,
    Refusal,
    decode_argv,
    decode_hello,
    decode_invocation,
    judge,
)
from claude_vm.supervisor.wire.version import VERSION

Answer = Callable[[Client], Awaitable[int]]
"""Carries out a client's command and returns its exit status. May be cancelled, when the server closes."""

AdmitClient = Callable[[Hello, tuple[str, ...]], Refusal | None]
"""Decides from a client's HELLO and its arguments whether it is served."""

OnError = Callable[[Exception], None]
"""Is told what went wrong; never raises, never waits."""

HANDSHAKE_S = 10.0
"""How long a client may take for HELLO and INVOKE, in seconds."""

FRAMES = 500
"""Frames of one client that are taken in a row."""

LAST_WORDS_S = 1.0
"""How long a closing server may take to tell a client that it closes, in seconds."""

FULL_S = 0.1
"""How long to leave off accepting when there are no file handles left, in seconds."""

_FULL = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_LATE_ABORTS = frozenset({errno.ECONNABORTED, errno.EPROTO})


def _same_version(hello: Hello, argv: tuple[str, ...]) -> Refusal | None:
    return judge(hello, argv, busy=True)


def _ignore(error: Exception) -> None:
    del error


def stream_uid(stream: ByteStream) -> int | None:
    """Return the user id of a stream's other end, or None when nobody knows."""
    raw = stream.extra(SocketAttribute.raw_socket, None)  # noqa: S610 - no Django here
    return None if raw is None else peer_uid(raw)


async def serve(
    listener: Listener[ByteStream],
    answer: Answer,
    *,
    admit: AdmitClient = _same_version,
    on_error: OnError = _ignore,
    uid_of: Callable[[ByteStream], int | None] = stream_uid,
) -> None:
    """Accept clients and call `answer` for each, until cancelled. Closes the listener.

    Only processes of our own user id are served; `uid_of` tells whose a connection is. `on_error` is told
    what an answer raised (the client gets the message only) and what went wrong with a connection.
    """
    async with listener, anyio.create_task_group() as tasks:

        async def serve_one(stream: ByteStream) -> None:
            await serve_connection(stream, answer, admit=admit, on_error=on_error, uid_of=uid_of)

        while True:
            try:
                await listener.serve(serve_one, tasks)
            except OSError as error:
                if error.errno in _FULL:
                    on_error(error)
                    await anyio.sleep(FULL_S)
                elif error.errno not in _LATE_ABORTS:
                    raise


async def serve_socket(connection: socket.socket, answer: Answer) -> None:
    """Serve the client at the other end of a connected unix socket, to its end. Takes the socket over."""
    stream = await UNIXSocketStream.from_socket(connection)
    await serve_connection(stream, answer)


async def serve_connection(
    stream: ByteStream,
    answer: Answer,
    *,
    admit: AdmitClient = _same_version,
    on_error: OnError = _ignore,
    uid_of: Callable[[ByteStream], int | None] | None = None,
    handshake_s: float = HANDSHAKE_S,
) -> None:
    """Serve one client to its end; closes the stream. Without `uid_of` anyone at its other end is served."""
    try:
        if uid_of is not None and uid_of(stream) != os.getuid():
            refusal = Refusal("other-user", "this claude-vm daemon belongs to another user")
            await stream.send(_refuse(refusal))
            return
        reader = FrameReader(FROM_CLIENT)
        with anyio.fail_after(handshake_s):
            welcome = await _shake_hands(stream, reader, admit)
        if welcome is not None:
            await _ServedClient(stream, reader, welcome, on_error).run(answer)
    except (ProtocolError, TimeoutError) as error:
        on_error(error)
        message = str(error) or "nothing came in time"
        with anyio.move_on_after(LAST_WORDS_S):
            await _try_send(stream, _refuse(Refusal("protocol-error", message)))
    except Exception as error:  # noqa: BLE001 - the stream's end; or a bug of ours, which must not end them all
        on_error(error)
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(LAST_WORDS_S):
            await stream.aclose()


async def _shake_hands(stream: ByteStream, reader: FrameReader, admit: AdmitClient) -> Invocation | None:
    """Return the client's invocation, or None when it was refused. What came after it stays in the reader."""
    frames: list[Frame] = []
    while len(frames) < 2:
        frames += reader.feed(await stream.receive(MAX_DATA), 2 - len(frames))
    (first, hello_payload), (second, invoke_payload) = frames
    if (first, second) != (FrameType.HELLO, FrameType.INVOKE):
        raise ProtocolError("a client that doesn't begin with HELLO and INVOKE")
    hello = decode_hello(hello_payload)
    invocation = None
    if (hello.protocol, hello.version) == (PROTOCOL, VERSION):
        invocation = decode_invocation(invoke_payload)
    refusal = admit(hello, invocation.argv if invocation is not None else decode_argv(invoke_payload))
    if refusal is not None:
        await stream.send(_refuse(refusal))
        return None
    invocation = msgspec.structs.replace(invocation or decode_invocation(invoke_payload), pid=hello.pid)
    own = {"protocol": PROTOCOL, "version": VERSION, "pid": os.getpid()}
    await stream.send(encode_json(FrameType.HELLO, own))
    return invocation


class _ServedClient:
    """One served client: its reader and its writer beside its answer."""

    def __init__(
        self, stream: ByteStream, reader: FrameReader, invocation: Invocation, on_error: OnError
    ) -> None:
        self._stream = stream
        self._reader = reader
        self._on_error = on_error
        self._outbox = Outbox(stream)
        self._client = Client(invocation, self._outbox)
        # Not cancelled from outside: that could cut a frame in two, and last words are to be said.
        self._writing = anyio.CancelScope(shield=True)

    async def run(self, answer: Answer) -> None:
        """Serve it to its end."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._write)
            tasks.start_soon(self._read)
            try:
                self._client.exit_nowait(await self._status(answer))
                await self._say_last_words()
            except anyio.get_cancelled_exc_class():
                with anyio.CancelScope(shield=True), anyio.move_on_after(LAST_WORDS_S):
                    text, beneath = _closing_note(self._client)
                    self._client.note_nowait(text, "error", beneath)
                    self._client.exit_nowait(SESSION_FAILED)
                    await self._outbox.wait_empty()
                raise
            finally:
                self._writing.cancel()
            tasks.cancel_scope.cancel()

    async def _say_last_words(self) -> None:
        """Wait until all is written: as long as a living client likes, but not for one that is cut off."""
        async with anyio.create_task_group() as tasks:

            async def hurry() -> None:
                await self._client.gone.wait()
                await anyio.sleep(LAST_WORDS_S)
                tasks.cancel_scope.cancel()

            tasks.start_soon(hurry)
            await self._outbox.wait_empty()
            tasks.cancel_scope.cancel()

    async def _write(self) -> None:
        with self._writing:
            await self._outbox.run()

    async def _status(self, answer: Answer) -> int:
        try:
            return await answer(self._client)
        except OutputClosedError:
            return OUTPUT_CLOSED
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets its message
            self._on_error(error)
            text, beneath = _words_for(error)
            self._client.note_nowait(text, "error", beneath)
            return SESSION_FAILED

    async def _read(self) -> None:
        try:
            frames = self._reader.feed(b"", FRAMES)
            while True:
                for frame in frames:
                    self._client.take_nowait(frame)
                if len(frames) >= FRAMES:  # small ones: there may be more, and others have their turn before
                    await anyio.lowlevel.checkpoint()
                    frames = self._reader.feed(b"", FRAMES)
                else:
                    frames = self._reader.feed(await self._stream.receive(MAX_DATA), FRAMES)
        except ProtocolError as error:
            self._on_error(error)
            self._outbox.cut_off_with(_refuse(Refusal(error.code, str(error))))
        except (OSError, anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            self._outbox.break_off()
        self._client.leave_nowait()


async def _try_send(stream: ByteStream, frame: bytes) -> None:
    with contextlib.suppress(
        OSError, anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.BusyResourceError
    ):
        await stream.send(frame)


def _refuse(refusal: Refusal) -> bytes:
    return encode_json(
        FrameType.REFUSED,
        {
            "code": refusal.code,
            "message": escape_line(refusal.message),
            "hint": escape_line(refusal.hint),
        },
    )


def _closing_note(client: Client) -> tuple[str, tuple[str, ...]]:
    """Return what a client is told whose answer is cancelled: what becomes of its session is not known."""
    if not client.has_started:
        return "claude-vm: the daemon is shutting down", ()
    return (
        "claude-vm: the daemon is shutting down; the session may go on in its VM",
        ("find it with `claude-vm ps`, end it with `claude-vm stop`",),
    )


def _words_for(error: BaseException) -> tuple[str, tuple[str, ...]]:
    """Return what a client is told about an answer's failure: its message, never where it happened."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if not isinstance(getattr(error, "code", None), str):
        shown = f"{type(error).__name__}: {error}"
        return f"claude-vm: internal error ({shown}); the daemon's log has more", ()
    return error_text(error)
