import os
import socket

import anyio
import pytest

from claude_vm.supervisor.wire.client import DaemonConnection, NoAnswerError, RefusedError, invoke
from claude_vm.supervisor.wire.framing import encode, encode_json
from claude_vm.supervisor.wire.messages import MAX_DATA, PROTOCOL, FrameType
from claude_vm.supervisor.wire.peer import peer_uid
from claude_vm.supervisor.wire.records import Refusal
from claude_vm.supervisor.wire.server import serve, serve_socket
from claude_vm.supervisor.wire.version import VERSION

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


INVOCATION = {"argv": ["x"], "cwd": "/", "env": {}}


def dial(path):
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    return connection


def frames_of(connection):
    """All frames until the end. Waits."""
    os.set_blocking(connection.fileno(), True)
    frames = []
    while not connection.ended:
        frames += connection.receive()
    connection.close()
    return frames


def talk(path):
    return frames_of(invoke(dial(path), INVOCATION))


async def test_clients_are_served_side_by_side_over_a_real_socket(tmp_path):
    together = anyio.Event()
    count = 0

    async def handler(client):
        nonlocal count
        count += 1
        if count == 20:
            together.set()
        await together.wait()
        await client.send_stdout(bytes(range(256)) * 256)
        return 7

    results = []
    async with anyio.create_task_group() as tasks:
        listener = await anyio.create_unix_listener(tmp_path / "s")
        tasks.start_soon(serve, listener, handler)
        async with anyio.create_task_group() as clients:

            async def one():
                results.append(await anyio.to_thread.run_sync(talk, tmp_path / "s"))

            for _ in range(20):
                clients.start_soon(one)
        tasks.cancel_scope.cancel()
    for frames in results:
        assert b"".join(p for k, p in frames if k is FrameType.STDOUT) == bytes(range(256)) * 256
        assert frames[-1] == (FrameType.EXIT, b'{"status":7}')
    assert len(results) == 20


async def test_the_peer_is_known_by_the_kernel(tmp_path):
    seen = []

    def uid_of(stream):
        from claude_vm.supervisor.wire.server import stream_uid

        seen.append(stream_uid(stream))
        return seen[-1] + 1

    async def handler(client):
        raise AssertionError(client)

    async with anyio.create_task_group() as tasks:
        listener = await anyio.create_unix_listener(tmp_path / "s")

        async def serve_all():
            await serve(listener, handler, uid_of=uid_of)

        tasks.start_soon(serve_all)
        with pytest.raises(RefusedError) as refused:
            await anyio.to_thread.run_sync(talk, tmp_path / "s")
        tasks.cancel_scope.cancel()
    assert refused.value.code == "other-user"
    assert seen == [os.getuid()]


async def test_a_refused_client_with_a_large_invocation_learns_why(tmp_path):
    async def handler(client):
        raise AssertionError(client)

    async with anyio.create_task_group() as tasks:
        listener = await anyio.create_unix_listener(tmp_path / "s")

        async def serve_all():
            await serve(listener, handler, admit=lambda *_: Refusal("no", "not you", "go away"))

        def large():
            return invoke(dial(tmp_path / "s"), {**INVOCATION, "argv": ["x" * 4_000_000]})

        tasks.start_soon(serve_all)
        with pytest.raises(RefusedError, match="not you") as refused:
            await anyio.to_thread.run_sync(large)
        tasks.cancel_scope.cancel()
    assert (refused.value.code, refused.value.hint) == ("no", "go away")


async def test_a_socket_pair_is_served_as_well():
    async def handler(client):
        await client.note(client.invocation.argv[0])
        return 0

    ours, theirs = socket.socketpair()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve_socket, theirs, handler)
        connection = await anyio.to_thread.run_sync(invoke, ours, INVOCATION)
        frames = await anyio.to_thread.run_sync(frames_of, connection)
    assert frames == [(FrameType.NOTE, b'{"text":"x","level":"info"}'), (FrameType.EXIT, b'{"status":0}')]


async def test_accepting_goes_on_when_file_handles_were_short(tmp_path):
    import errno

    async def handler(client):
        del client
        return 0

    errors = []

    class Short:
        """A listener whose first accepts fail."""

        def __init__(self, listener):
            self.listener = listener
            self.failures = [OSError(errno.EMFILE, "too many"), OSError(errno.ECONNABORTED, "gone")]

        async def serve(self, serve_one, tasks):
            if self.failures:
                raise self.failures.pop(0)
            await self.listener.serve(serve_one, tasks)

        async def __aenter__(self):
            return self

        async def __aexit__(self, *_):
            await self.listener.aclose()

    async with anyio.create_task_group() as tasks:
        listener = Short(await anyio.create_unix_listener(tmp_path / "s"))

        async def serve_all():
            await serve(listener, handler, on_error=errors.append)

        tasks.start_soon(serve_all)
        frames = await anyio.to_thread.run_sync(talk, tmp_path / "s")
        tasks.cancel_scope.cancel()
    assert frames == [(FrameType.EXIT, b'{"status":0}')]
    assert [e.errno for e in errors] == [errno.EMFILE]


def server_that_says(data):
    ours, theirs = socket.socketpair()
    theirs.sendall(data)
    theirs.shutdown(socket.SHUT_WR)
    return ours, theirs


@pytest.mark.parametrize(
    "answer", [b"", encode_json(FrameType.EXIT, {"status": 0}), encode(FrameType.STDOUT, b"x")]
)
def test_a_daemon_that_does_not_say_hello_is_none(answer):
    ours, theirs = server_that_says(answer)
    with theirs, pytest.raises(NoAnswerError):
        invoke(ours, INVOCATION)
    assert ours.fileno() == -1


def test_nothing_is_said_to_another_users_process(monkeypatch):
    from claude_vm.supervisor.wire import client

    monkeypatch.setattr(client, "peer_uid", lambda _: os.getuid() + 1)
    ours, theirs = socket.socketpair()
    with theirs:
        with pytest.raises(NoAnswerError, match="not yours"):
            invoke(ours, INVOCATION)
        assert theirs.recv(1) == b""


def test_a_connection_says_what_came_with_the_welcome_and_sends_what_it_can():
    hello = encode_json(FrameType.HELLO, {"protocol": PROTOCOL, "version": VERSION, "pid": 1})
    ours, theirs = server_that_says(hello + encode(FrameType.STDOUT, b"early"))
    with theirs:
        connection = invoke(ours, INVOCATION)
        assert isinstance(connection, DaemonConnection)
        assert connection.has_early_frames
        assert connection.receive() == [(FrameType.STDOUT, b"early")]
        assert not connection.has_early_frames
        for _ in range(64):
            connection.put(encode(FrameType.STDIN, bytes(MAX_DATA)))
        before = connection.pending
        connection.flush()
        assert 0 < connection.pending < before
        assert connection.receive() == []
        assert connection.ended
    connection.flush()
    assert connection.pending == 0
    connection.put(b"dropped")
    assert connection.pending == 0
    connection.close()


def test_our_own_user_is_at_the_other_end_of_our_socket_pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert peer_uid(ours) == os.getuid()


def test_the_version_is_the_packages():
    from importlib.metadata import version

    assert version("claude-vm") == VERSION
