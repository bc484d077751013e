"""Who connects to a published port: never the guest of another session. A process stands for its VM."""

import os
import socket
import subprocess
import sys

import anyio
import pytest

from claude_vm.context.ports import PortSpec, Publish
from claude_vm.supervisor.daemon.ports import neighbours
from claude_vm.supervisor.daemon.ports import published as module
from claude_vm.supervisor.daemon.ports.neighbours import may_enter
from claude_vm.supervisor.daemon.ports.published import Ports

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="other systems don't tell whose a socket is"),
]

VM = """
import socket, sys
try:
    held = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20)
    held.sendall(b"from a guest")
    print("connected", flush=True)
    sys.stdin.read(1)
    print(len(held.recv(100)), flush=True)
except OSError as error:  # as early as when it connects: the answer can be there before it has run on
    print(type(error).__name__, flush=True)
"""


class Vm:
    """A process that connects, and then waits for a word."""

    def __init__(self, address, port):
        self.process = subprocess.Popen(
            [sys.executable, "-c", VM, address, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.pid = self.process.pid

    def connected(self):
        assert self.process.stdout.readline() == b"connected\n"

    def outcome(self):
        output, _ = self.process.communicate(b"x")
        return output.decode().split()[-1]

    def close(self):
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            pipe.close()


@pytest.fixture
def start():
    started = []

    def start(address, port):
        started.append(Vm(address, port))
        return started[-1]

    yield start
    for vm in started:
        vm.close()


@pytest.fixture(params=["127.0.0.1", "::1"])
def listener(request):
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    try:
        made = socket.create_server((request.param, 0), family=family)
    except OSError:
        pytest.skip("this host has no ::1")
    with made:
        yield made


def accepted(listener):
    client, _ = listener.accept()
    return client


@pytest.mark.parametrize("asks", [True, False])
def test_a_client_that_another_sessions_vm_has_open_is_kept_out_and_nobody_else(
    start, listener, monkeypatch, asks
):
    if not asks:  # a kernel that can't be asked has a table
        monkeypatch.setattr(neighbours, "_asked", lambda *_: 0)
    address, port = listener.getsockname()[:2]
    vm, other = start(address, port), start(address, port)
    with accepted(listener) as one, accepted(listener) as two:
        vm.connected()
        other.connected()
        found = [[may_enter(client, [pid]) for client in (one, two)] for pid in (vm.pid, other.pid)]
        assert sorted(found) == [[False, True], [True, False]]
        assert not may_enter(one, [vm.pid, other.pid])
        assert may_enter(one, [os.getpid()])
        assert may_enter(one, [])


def test_a_client_that_has_closed_its_socket_cannot_be_told_and_is_kept_out(start, listener):
    address, port = listener.getsockname()[:2]
    with socket.create_connection((address, port)) as ours, accepted(listener) as client:
        ours.sendall(b"fire and forget")
        ours.close()
        assert not may_enter(client, [os.getpid()])
        assert may_enter(client, [])  # where there is no other guest it can be none's


def test_a_socket_that_is_closed_while_it_is_looked_for_is_kept_out(start, listener, monkeypatch):
    address, port = listener.getsockname()[:2]
    with socket.create_connection((address, port)) as ours, accepted(listener) as client:

        def holds(_pid, _inode):
            ours.close()
            return False

        monkeypatch.setattr(neighbours, "_holds", holds)
        assert not may_enter(client, [os.getpid()])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look at every process")
def test_a_process_that_cannot_be_looked_at_is_taken_for_the_client_and_one_that_has_ended_not(listener):
    address, port = listener.getsockname()[:2]
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    with socket.create_connection((address, port)), accepted(listener) as client:
        assert not may_enter(client, [1])
        assert may_enter(client, [ended.pid])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look at every process")
def test_a_process_whose_end_its_parent_has_not_heard_of_is_not_the_client(listener):
    with subprocess.Popen(["true"]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(PermissionError):
            os.scandir(f"/proc/{ended.pid}/fd")
        with socket.create_connection(listener.getsockname()[:2]), accepted(listener) as client:
            assert may_enter(client, [ended.pid])


@pytest.mark.parametrize(("then", "held"), [("Z", False), ("R", True)])
def test_a_process_that_is_ending_is_waited_for_but_not_for_ever(listener, monkeypatch, then, held):
    states = iter([("R", True), ("R", True)])

    def closed(_pid, _inode):
        raise PermissionError

    monkeypatch.setattr(neighbours, "_PATIENCE", 0.1)
    monkeypatch.setattr(neighbours, "_has", closed)
    monkeypatch.setattr(neighbours, "_status", lambda _pid: next(states, (then, True)))
    with socket.create_connection(listener.getsockname()[:2]), accepted(listener) as client:
        assert may_enter(client, [os.getpid()]) is not held


async def test_another_sessions_guest_is_reset_at_a_published_port_and_the_host_is_served(start, monkeypatch):
    served = []

    async def carry(link, client, _port):
        served.append(link is not None)
        if link is None:
            module.carry_reset(client)
        else:
            await anyio.wait_readable(client)
            client.sendall(client.recv(100).upper())
        client.close()

    from claude_vm.supervisor.ssh import forward

    monkeypatch.setattr(module, "carry_reset", forward._reset, raising=False)
    monkeypatch.setattr(module, "carry", carry)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ports = Ports(Publish((PortSpec(80, port),)))
    assert ports.reserve() == []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: ports.serve(lambda *_: None, hint=False))
        ports.connect(object())
        vm = start("127.0.0.1", port)
        ports.keep_out(lambda: [vm.pid])
        assert await anyio.to_thread.run_sync(vm.outcome) == "ConnectionResetError"
        async with await anyio.connect_tcp("127.0.0.1", port) as ours:
            await ours.send(b"host")
            assert await ours.receive() == b"HOST"
        tasks.cancel_scope.cancel()
    assert served == [False, True]
