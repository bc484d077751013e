"""A guest that stops answering without a word: everything that waits for it has an end. Simulated guests."""

import contextlib
import os
import time

import anyio
import msgspec
import pytest

from claude_vm.drivers.api import InstanceSpec, Owner, TemplateSpec
from claude_vm.drivers.sim.driver import open_driver
from claude_vm.drivers.sim.script import Script
from claude_vm.supervisor.ssh import link as links
from claude_vm.supervisor.ssh import shells, stream
from claude_vm.supervisor.ssh.errors import ConnectTimeoutError, LinkLostError, ShellError

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


class Proxy:
    """Stands between a supervisor and a guest, and stops forwarding when it is told to."""

    def __init__(self):
        self.passing = anyio.Event()
        self.passing.set()
        self.port = 0

    def swallow(self):
        """From now on nothing passes, and nobody learns of it."""
        self.passing = anyio.Event()

    async def serve(self, target, tasks):
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        self.port = listener.extra(anyio.abc.SocketAttribute.local_port)

        async def one(near):
            far = await anyio.connect_tcp("127.0.0.1", target)
            async with near, far, anyio.create_task_group() as ways:
                ways.start_soon(self._carry, near, far)
                ways.start_soon(self._carry, far, near)

        async def listen():
            async with listener:
                await listener.serve(one)

        tasks.start_soon(listen)

    async def _carry(self, source, sink):
        with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            while True:
                data = await source.receive()
                await self.passing.wait()
                await sink.send(data)


@pytest.fixture
def quick(monkeypatch):
    """Waiting times of tests."""
    monkeypatch.setattr(links, "KEEPALIVE_S", 0.2)
    monkeypatch.setattr(links, "KEEPALIVE_COUNT", 2)
    monkeypatch.setattr(stream, "ANSWER_S", 1.0)
    monkeypatch.setattr(shells, "PRIME_S", 1.0)


@pytest.fixture
async def guest(tmp_path, quick):
    """A proxy before a running guest, and how that is reached through it."""
    proxy = Proxy()
    async with open_driver(Owner(tmp_path, "daemon", tmp_path / "run"), script=Script()) as driver:
        record = await driver.build_template(
            TemplateSpec(
                name="t", project="/p", cpus=1, memory_mib=512, disk_gib=8, uid=os.getuid(), gid=os.getgid()
            ),
            lambda *_: None,
        )
        spec = InstanceSpec(
            instance_id="i-1", template="t", generation=record.generation, cpus=1, memory_mib=512, disk_gib=8,
            mounts=(),
        )  # fmt: skip
        await driver.clone(spec)
        access = await driver.start("i-1", lambda *_: None)
        async with anyio.create_task_group() as tasks:
            await proxy.serve(access.port, tasks)
            yield proxy, msgspec.structs.replace(access, port=proxy.port)
            tasks.cancel_scope.cancel()
        await driver.delete("i-1")


async def test_a_handshake_that_nobody_answers_ends_in_time(guest):
    proxy, access = guest
    proxy.swallow()
    begun = time.monotonic()
    with pytest.raises(ConnectTimeoutError):
        await links.connect(access, timeout_s=0.5)
    assert time.monotonic() - begun < 10


async def test_shells_that_are_never_ready_end_in_time(guest):
    proxy, access = guest
    async with contextlib.aclosing(await links.connect(access, timeout_s=20)) as link:
        proxy.swallow()
        with pytest.raises((LinkLostError, ShellError)):
            await shells.prime(link, tuple(shells.ShellKind), term="xterm")


async def test_a_connection_that_waits_is_given_up_when_its_guest_is_silent(guest):
    proxy, access = guest
    async with contextlib.aclosing(await links.connect(access, timeout_s=20)) as link:
        await shells.prime(link, tuple(shells.ShellKind), term="xterm")
        proxy.swallow()
        with anyio.fail_after(20):
            assert await link.wait_closed()
