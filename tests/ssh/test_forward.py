"""Connections to a guest's ports: the guest's machine is this one, the way through SSH is real."""

import contextlib
import errno
import hashlib
import socket
import struct

import anyio
import asyncssh
import pytest

from claude_vm.drivers.api import Access
from claude_vm.supervisor.daemon.ports import loopback
from claude_vm.supervisor.ssh import forward as module
from claude_vm.supervisor.ssh.forward import carry
from claude_vm.supervisor.ssh.link import connect

pytestmark = pytest.mark.anyio

LARGE = 30 * 1024 * 1024
PIECE = bytes(range(256)) * 256


async def stops_taking(client):
    """Send until nothing is taken for a second; false when three times what may wait is taken."""
    sent = 0
    while sent < 3 * LARGE:  # what the host's own buffers take
        with anyio.move_on_after(1) as patience:
            await client.send(PIECE)
            sent += len(PIECE)
        if patience.cancelled_caught:
            return True
    return False


async def serve_until_cancelled(listener, handler):
    async with listener:
        await listener.serve(handler)


async def publish_until_cancelled(link, listener, guest, tasks):
    with listener:
        await loopback.serve(listener, lambda client: carry(link, client, guest), tasks)


@pytest.fixture
async def published(link):
    """Publish a port of the guest; return a way to connect to it."""
    async with anyio.create_task_group() as tasks:

        async def publish(guest, *, through=link):
            (listener, *others) = loopback.listen_anywhere()
            for other in others:
                other.close()
            tasks.start_soon(publish_until_cancelled, through, listener, guest, tasks)
            port = listener.getsockname()[1]
            return lambda: anyio.connect_tcp("127.0.0.1", port)

        yield publish
        tasks.cancel_scope.cancel()


@pytest.fixture
async def serve():
    """Let something listen in the guest; return its port."""
    async with anyio.create_task_group() as tasks:

        async def start(handler, *, host="127.0.0.1"):
            listener = await anyio.create_tcp_listener(local_host=host)
            tasks.start_soon(serve_until_cancelled, listener, handler)
            return listener.extra(anyio.abc.SocketAttribute.local_port)

        yield start
        tasks.cancel_scope.cancel()


async def echo(stream):
    async with stream:
        with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while True:
                await stream.send(await stream.receive())
        await stream.send(b"<end>")


async def read_all(stream):
    data = bytearray()
    with contextlib.suppress(anyio.EndOfStream):
        while True:
            data += await stream.receive()
    return bytes(data)


async def refused(connect):
    """Connect, and return how that ends."""
    async with await connect() as client:
        try:
            return await client.receive()
        except anyio.EndOfStream:
            return "an end"
        except anyio.BrokenResourceError as error:
            return error.__cause__.errno


async def test_each_direction_ends_by_itself(published, serve):
    connect = await published(await serve(echo))
    async with await connect() as client:
        await client.send(b"question")
        assert await client.receive() == b"question"
        await client.send_eof()  # the server sees the end, and has more to say
        assert await read_all(client) == b"<end>"


async def test_a_server_that_ends_first_still_hears_the_rest(published, serve):
    heard = []
    done = anyio.Event()

    async def handler(stream):
        async with stream:
            await stream.send(b"bye")
            await stream.send_eof()
            heard.append(await read_all(stream))
            done.set()

    connect = await published(await serve(handler))
    async with await connect() as client:
        assert await read_all(client) == b"bye"
        await client.send(b"one more thing")
        await client.send_eof()
        await done.wait()
    assert heard == [b"one more thing"]


@pytest.mark.parametrize("upwards", [True, False])
async def test_thirty_megabytes_arrive_as_they_were(published, serve, upwards):
    sums = [hashlib.sha256(), hashlib.sha256()]
    received = anyio.Event()

    async def send(stream):
        for _ in range(LARGE // len(PIECE)):
            await stream.send(PIECE)
            sums[0].update(PIECE)
        await stream.send_eof()

    async def receive(stream):
        with contextlib.suppress(anyio.EndOfStream):
            while True:
                sums[1].update(await stream.receive())
        received.set()

    async def handler(stream):
        async with stream:
            await (receive if upwards else send)(stream)

    connect = await published(await serve(handler))
    async with await connect() as client:
        await (send if upwards else receive)(client)
        await received.wait()
    assert sums[0].digest() == sums[1].digest()


async def test_a_client_that_does_not_read_stops_the_guests_writer(published, serve):
    sent = 0
    stuck = anyio.Event()

    async def handler(stream):
        nonlocal sent
        stream.extra(anyio.abc.SocketAttribute.raw_socket).setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDBUF, 65536
        )
        async with stream:
            while not stuck.is_set():
                with anyio.move_on_after(1) as waiting:
                    await stream.send(PIECE)
                    sent += len(PIECE)
                if waiting.cancelled_caught:
                    stuck.set()

    connect = await published(await serve(handler))
    async with await connect():
        await stuck.wait()
    assert sent < 32 * 1024 * 1024


class Greedy(asyncssh.SSHServer):
    """A guest that allows a client to send a gigabyte, and then reads nothing."""

    def connection_made(self, conn):
        self.connection = conn

    def begin_auth(self, username):
        return False

    def connection_requested(self, *_):
        channel = self.connection.create_tcp_channel(encoding=None, window=1 << 30)
        self.connection._transport.pause_reading()
        return channel, asyncssh.SSHTCPSession()


@pytest.mark.parametrize("server", ["sim"], indirect=True)
async def test_a_guest_that_allows_much_and_takes_nothing_fills_no_memory(tmp_path, published):
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(tmp_path / "key")
    greedy = Greedy()
    async with asyncssh.listen(
        "127.0.0.1", 0, server_factory=lambda: greedy, server_host_keys=[key]
    ) as guest:
        host_key = key.export_public_key().decode()
        access = Access("127.0.0.1", guest.get_port(), "u", "/", host_key, tmp_path / "key")
        async with contextlib.aclosing(await connect(access, timeout_s=20)) as link:
            reach = await published(3000, through=link)
            async with await reach() as client:
                assert await stops_taking(client)
                assert link._connection._transport.get_write_buffer_size() < 1024 * 1024
        greedy.connection.abort()
        await greedy.connection.wait_closed()


async def test_many_connections_at_once_are_not_mixed_up(published, serve):
    connect = await published(await serve(echo))
    answers = {}

    async def ask(number):
        async with await connect() as client:
            await client.send(b"%d" % number * 1000)
            await client.send_eof()
            answers[number] = await read_all(client)

    async with anyio.create_task_group() as tasks:
        for number in range(100):
            tasks.start_soon(ask, number)
    assert answers == {number: b"%d" % number * 1000 + b"<end>" for number in range(100)}


async def test_where_nobody_listens_the_client_is_reset_at_once(published):
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = free.getsockname()[1]
    connect = await published(nobody)
    with anyio.fail_after(10):
        assert await refused(connect) == errno.ECONNRESET


async def test_without_a_guest_the_client_is_reset(published):
    connect = await published(3000, through=None)
    assert await refused(connect) == errno.ECONNRESET


async def test_a_guest_that_does_not_answer_is_given_up(published, link, monkeypatch):
    async def never(_port):
        await anyio.sleep_forever()

    monkeypatch.setattr(link, "open_tcp", never)
    monkeypatch.setattr(module, "OPEN_S", 0.05)
    connect = await published(3000)
    assert await refused(connect) == errno.ECONNRESET


async def test_what_a_client_sends_before_the_guest_answers_stays_with_the_client(
    published, link, monkeypatch
):
    async def never(_port):
        await anyio.sleep_forever()

    monkeypatch.setattr(link, "open_tcp", never)
    connect = await published(3000)
    async with await connect() as client:
        assert await stops_taking(client)


async def test_a_client_that_resets_is_gone_for_the_guests_server_too(published, serve):
    ended = anyio.Event()

    async def handler(stream):
        async with stream:
            await stream.receive()
            with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                await stream.receive()
            ended.set()

    connect = await published(await serve(handler))
    client = await connect()
    await client.send(b"x")
    raw = client.extra(anyio.abc.SocketAttribute.raw_socket)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await client.aclose()
    with anyio.fail_after(10):
        await ended.wait()


async def test_a_connection_that_is_cut_by_the_guests_death_is_no_end(published, serve, link):
    async def handler(stream):
        async with stream:
            await stream.send(b"the first half")
            await anyio.sleep_forever()

    connect = await published(await serve(handler))
    async with await connect() as client:
        assert await client.receive() == b"the first half"
        link.cut()
        with pytest.raises(anyio.BrokenResourceError):
            await client.receive()


async def test_a_server_on_ipv6_alone_is_reached(published, serve):
    try:
        port = await serve(echo, host="::1")
    except OSError:  # a host without it has nothing to reach
        return
    connect = await published(port)
    async with await connect() as client:
        await client.send(b"six")
        assert await client.receive() == b"six"
