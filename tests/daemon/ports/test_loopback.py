"""Listening on the loopback, and what a session's ports do with it."""

import errno
import socket
from contextlib import ExitStack
from types import SimpleNamespace

import anyio
import pytest

from claude_vm.context.ports import PortSpec, Publish
from claude_vm.supervisor.daemon.ports import loopback
from claude_vm.supervisor.daemon.ports import published as module
from claude_vm.supervisor.daemon.ports.published import Ports
from claude_vm.supervisor.ssh.errors import LinkLostError, ShellError

pytestmark = pytest.mark.anyio


@pytest.fixture
def stack():
    with ExitStack() as made:
        yield made


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


def has_ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def listen(stack, port):
    found = loopback.listen(port)
    for each in found:
        stack.enter_context(each)
    return found


def test_both_addresses_of_the_loopback_are_listened_at(stack):
    port = free_port()
    found = [each.getsockname()[:2] for each in listen(stack, port)]
    assert found == [("127.0.0.1", port), *([("::1", port)] if has_ipv6() else [])]


@pytest.mark.parametrize("port", [0, 1, 22, 80, 1023])
def test_low_ports_are_never_listened_at_whoever_asks(port):
    with pytest.raises(ValueError, match=str(port)):
        loopback.listen(port)


@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", "::1", "::"])
def test_a_port_that_somebody_has_on_either_address_is_taken_and_nothing_of_it_stays(stack, address):
    if ":" in address and not has_ipv6():
        return
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    port = free_port()
    with (
        socket.create_server((address, port), family=family),
        pytest.raises(OSError, match="in use") as caught,
    ):
        loopback.listen(port)
    assert caught.value.errno == errno.EADDRINUSE
    listen(stack, port)


def test_a_free_port_is_free_on_both_addresses(stack):
    found = loopback.listen_anywhere()
    for each in found:
        stack.enter_context(each)
    assert len({each.getsockname()[1] for each in found}) == 1
    assert found[0].getsockname()[1] >= 1024
    assert len(found) == 1 + has_ipv6()


def test_a_port_can_be_had_again_right_after_its_connections(stack):
    port = free_port()
    first = loopback.listen(port)
    with socket.create_connection(("127.0.0.1", port)):
        accepted, _ = first[0].accept()
        accepted.close()  # this side first, so what is left of it is on this port
    for each in first:
        each.close()
    listen(stack, port)


async def test_a_session_keeps_what_it_could_get_and_tells_the_rest():
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        taken, free = somebody.getsockname()[1], free_port()
        ports = Ports(Publish((PortSpec(80, taken), PortSpec(81, free))))
        assert ports.reserve() == [(taken, "Address already in use")]
        assert ports.has(free)
        assert not ports.has(taken)
        assert {p.host: p.problem for p in ports.listed} == {taken: "Address already in use", free: ""}
        ports.close()
    with socket.create_server(("127.0.0.1", free)):
        assert not ports.has(free)


class Lines:
    def __init__(self):
        self.told = []
        self.news = anyio.Event()

    def __call__(self, text, level):
        self.told.append((text, level))
        self.news.set()


@pytest.fixture
def guest(monkeypatch):
    """A guest whose answers about its ports a test sends."""
    send, receive = anyio.create_memory_object_stream(100)

    async def answers(_link):
        async for answer in receive:
            if isinstance(answer, Exception):
                raise answer
            yield frozenset(answer)

    monkeypatch.setattr(module, "listening_ports", answers)
    monkeypatch.setattr(module, "HINT_AFTER_S", 0)
    monkeypatch.setattr(module, "AGAIN_S", 0)
    yield SimpleNamespace(says=send.send_nowait)
    send.close()
    receive.close()


async def run(ports, *, hint, until):
    """Serve ports until something has been told, or so many answers were taken."""
    lines = Lines()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: ports.serve(lines, hint=hint))
        ports.connect(object())
        with anyio.fail_after(20):
            await until(lines)
        tasks.cancel_scope.cancel()
    return [text for text, _ in lines.told]


async def told(lines):
    await lines.news.wait()


async def test_the_hint_is_told_once_and_names_a_port_that_could_be_published(guest):
    for answer in ([], [22, 80], [22, 5000, 4000], [6000]):
        guest.says(answer)
    lines = await run(Ports(Publish()), hint=True, until=told)
    (line,) = lines
    assert line.startswith("claude-vm: the guest listens at 4000, and this host can't reach that port;")
    assert line.endswith("--publish 4000, or --publish auto")


@pytest.mark.parametrize("publish", [Publish((PortSpec(4000, 4000),)), Publish()])
async def test_no_hint_where_something_is_published_or_nobody_wants_one(guest, publish):
    ports = Ports(publish)
    guest.says([5000])

    async def settled(_lines):
        await anyio.wait_all_tasks_blocked()

    assert await run(ports, hint=bool(publish.ports), until=settled) == [
        text for text in ["claude-vm: localhost:4000 leads to the guest's port 4000"] if ports.listed
    ]


@pytest.mark.parametrize("error", [LinkLostError("gone"), ShellError("no")])
async def test_a_guest_that_fails_to_tell_is_asked_again_where_ports_shall_follow_it(guest, error):
    port = free_port()
    guest.says(error)
    guest.says([port])
    lines = await run(Ports(Publish(auto=True)), hint=True, until=told)
    assert lines == [f"claude-vm: the guest's port {port} is at localhost:{port}"]


async def test_a_port_that_comes_back_has_the_number_that_it_had(guest):
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        port = somebody.getsockname()[1]
        ports = Ports(Publish(auto=True))
        hosts = []

        async def comes_and_goes(lines):
            for _ in range(3):
                guest.says([port])
                await anyio.wait_all_tasks_blocked()
                hosts.append(ports.listed[0].host)
                guest.says([])
                await anyio.wait_all_tasks_blocked()
                assert ports.listed == []

        await run(ports, hint=False, until=comes_and_goes)
    assert hosts[0] != port
    assert len(set(hosts)) == 1


async def test_a_guest_that_listens_everywhere_fills_neither_the_host_nor_the_screen(guest):
    ports = Ports(Publish(auto=True))

    async def floods(_lines):
        for start in range(20000, 20000 + 50 * 40, 40):
            guest.says(range(start, start + 40))
            await anyio.wait_all_tasks_blocked()
            assert len(ports.listed) <= module.MOST

    lines = await run(ports, hint=False, until=floods)
    assert len(lines) <= module.MOST_TOLD
    assert any("more ports than `auto` publishes" in line for line in lines)


async def test_connections_above_the_limit_are_reset_and_room_is_used_again(monkeypatch):
    monkeypatch.setattr(module, "MOST_CONNECTIONS", 2)
    begun, ended = [], []
    release, news = anyio.Event(), [anyio.Event()]

    def note(where, what):
        where.append(what)
        news[0].set()
        news[0] = anyio.Event()

    async def carry(link, client, port):
        note(begun, link is not None)
        with client:
            if link is not None:
                await release.wait()
        note(ended, link is not None)

    monkeypatch.setattr(module, "carry", carry)
    port = free_port()
    ports = Ports(Publish((PortSpec(80, port),)))
    assert ports.reserve() == []

    async def connects(_lines):
        for number in range(5):
            if number == 4:
                release.set()
            while len(ended) < (4 if number == 4 else max(0, number - 2)):
                await news[0].wait()
            clients.append(await anyio.connect_tcp("127.0.0.1", port))
            while len(begun) <= number:
                await news[0].wait()

    clients = []
    await run(ports, hint=False, until=connects)
    for client in clients:
        await client.aclose()
    assert begun == [True, True, False, False, True]


async def test_whatever_goes_wrong_with_one_connection_the_others_go_on(monkeypatch):
    async def carry(_link, client, _port):
        await anyio.lowlevel.checkpoint()
        client.close()
        raise RuntimeError("a bug")

    monkeypatch.setattr(module, "carry", carry)
    port = free_port()
    ports = Ports(Publish((PortSpec(80, port),)))
    ports.reserve()

    async def connects(_lines):
        for _ in range(3):
            async with await anyio.connect_tcp("127.0.0.1", port) as client:
                with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                    await client.receive()
        assert ports.has(port)

    await run(ports, hint=False, until=connects)
