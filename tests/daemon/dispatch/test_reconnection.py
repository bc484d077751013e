"""A session whose guest is out of reach: what is tried, for how long, and what its client is told.

VMs in memory, in virtual time.
"""

import anyio
import pytest
import trio
from claude_vm_tests_memory import MemoryClient, in_virtual_time, settled

from claude_vm.supervisor.daemon.dispatch.reconnection import REFUSALS, SILENT_S
from claude_vm.supervisor.ssh.errors import ChannelRefusedError, ConnectError
from claude_vm.supervisor.ssh.process import Pty
from claude_vm.supervisor.wire.connected_client import Signal

SILENT_TEXT = (
    "claude-vm: the guest has not answered for 10 s; claude-vm waits as long as its VM runs"
    " (Ctrl-C twice ends the session)"
)
SILENT = ("urgent", SILENT_TEXT)
KEYS = {"ctrl-c": b"\x03", "kitty": b"\x1b[99;5u", "other": b"c\x1b[99;6u"}


class Typist(MemoryClient):
    """A client whose user types, and sends signals."""

    def __init__(self):
        super().__init__()
        self.typed, self.keys = trio.open_memory_channel(10)
        self.sent, self.signals = trio.open_memory_channel(10)

    async def receive_stdin(self):
        return await self.keys.receive()

    async def next_control(self):
        return await self.signals.receive()


async def running(supervisor, world, **changes):
    session = await supervisor.session(**changes)
    await settled()
    (vm,) = world.cloud.vms.values()
    return session, vm


def test_a_lost_connection_is_made_again_and_nobody_is_told_if_that_is_quick(world):
    async def main():
        async with world.supervisor() as supervisor:
            session, vm = await running(supervisor, world)
            vm.links[0].lose("cut")
            await trio.sleep(1)
            assert world.attempts == 2
            vm.end_session("a1", 7)
            await session.ended.wait()
            assert (session.outcome.status, session.outcome.code) == (7, "")
            assert session.client.notes == []

    in_virtual_time(main)


@pytest.mark.parametrize("seconds", [90, 4000])
def test_a_connection_that_can_not_be_made_is_tried_for_as_long_as_the_vm_is_there(world, seconds):
    async def main():
        async with world.supervisor() as supervisor:
            session, vm = await running(supervisor, world)
            world.cloud.refuse_connections = True
            vm.links[0].lose("cut")
            await trio.sleep(SILENT_S - 1)
            assert session.client.notes == []
            await trio.sleep(2)
            assert session.client.notes == [SILENT]
            await trio.sleep(seconds)
            assert not session.ended.is_set()
            world.cloud.refuse_connections = False
            await trio.sleep(6)
            assert len(session.client.notes) == 2
            assert session.client.notes[1][1].startswith("claude-vm: the guest answers again, after ")
            assert [name for name, _ in world.cloud.calls].count("set_clock") == 1
            vm.end_session("a1", 3)
            await session.ended.wait()
            assert session.outcome.status == 3

    in_virtual_time(main)


def test_a_vm_that_stands_still_keeps_its_connection_if_it_goes_on_first(world):
    async def main():
        gate = world.cloud.gate("connect")
        gate.open.set()
        async with world.supervisor() as supervisor:
            session, vm = await running(supervisor, world)
            gate.open = anyio.Event()  # a VM that stands still takes no further connection
            vm.stand_still()
            await trio.sleep(90)
            assert gate.reached == 2
            assert session.client.notes == [SILENT]
            vm.go_on()
            await trio.sleep(1)
            assert len(vm.links) == 1
            assert not vm.links[0].lost
            assert session.client.notes[1][1] == "claude-vm: the guest answers again, after 90 s"
            vm.stand_still()
            await trio.sleep(15)
            assert session.client.notes[2:] == [SILENT]
            vm.go_on()
            vm.end_session("a1", 0)
            await session.ended.wait()

    in_virtual_time(main)


def test_a_connection_that_is_dead_without_a_word_is_replaced(world):
    async def main():
        async with world.supervisor() as supervisor:
            session, vm = await running(supervisor, world)
            vm.links[0].stand_still()
            await trio.sleep(60)
            assert vm.links[0].closed
            assert not vm.links[-1].lost
            assert session.client.notes[1][1] == "claude-vm: the guest answers again, after 30 s"
            vm.end_session("a1", 4)
            await session.ended.wait()
            assert session.outcome.status == 4

    in_virtual_time(main)


def test_a_vm_that_dies_meanwhile_ends_the_session_with_that_reason(world):
    async def main():
        async with world.supervisor() as supervisor:
            session, vm = await running(supervisor, world)
            world.cloud.gate("connect")
            vm.stand_still()
            await trio.sleep(60)
            vm.die("QEMU was killed (SIGKILL)")
            await session.ended.wait()
            assert (session.outcome.code, session.outcome.message) == ("vm-died", "QEMU was killed (SIGKILL)")

    in_virtual_time(main)


def test_a_session_that_waits_for_its_guest_can_be_stopped(world):
    async def main():
        async with world.supervisor() as supervisor:
            session, vm = await running(supervisor, world)
            world.cloud.gate("connect")
            vm.stand_still()
            await trio.sleep(60)
            supervisor.dispatcher.stop("a1", "stopped", 143)
            await session.ended.wait()
            assert session.outcome.status == 143
        assert world.cloud.vms == {}

    in_virtual_time(main)


@pytest.mark.parametrize("way", ["signals", "ctrl-c", "kitty", "other"])
def test_a_second_ctrl_c_ends_a_session_whose_guest_does_not_answer(world, way):
    async def main():
        client = Typist()
        pty = None if way == "signals" else Pty("xterm", 24, 80)

        async def press():
            await (client.sent.send(Signal("INT")) if way == "signals" else client.typed.send(KEYS[way]))
            await settled()

        async with world.supervisor() as supervisor:
            session, vm = await running(supervisor, world, client=client, pty=pty)
            for _ in range(3):
                await press()  # the guest answers: these are its own
            vm.stand_still()
            await trio.sleep(SILENT_S + 1)
            await press()
            assert not session.ended.is_set()
            await press()
            assert session.ended.is_set() == (way != "other")
            if session.ended.is_set():
                assert (session.outcome.status, session.outcome.code) == (130, "")
                assert world.cloud.vms == {}

    in_virtual_time(main)


def test_a_ctrl_c_before_the_guest_came_back_is_forgotten(world):
    async def main():
        client = Typist()
        async with world.supervisor() as supervisor:
            session, vm = await running(supervisor, world, client=client)
            for _ in range(2):
                vm.stand_still()
                await trio.sleep(SILENT_S + 1)
                await client.sent.send(Signal("INT"))
                await settled()
                vm.go_on()
                await trio.sleep(1)
            assert not session.ended.is_set()

    in_virtual_time(main)


def test_a_holder_that_is_gone_ends_the_session(world):
    async def main():
        async with world.supervisor() as supervisor:
            session, vm = await running(supervisor, world)
            world.cloud.failures["attach"] = [ChannelRefusedError("nobody listens")] * REFUSALS
            vm.links[0].lose("cut")
            await trio.sleep(60)
            assert (session.outcome.status, session.outcome.code) == (125, "session-lost")

    in_virtual_time(main)


def test_failures_that_pass_do_not_add_up(world):
    async def main():
        async with world.supervisor() as supervisor:
            session, vm = await running(supervisor, world)
            some = [ChannelRefusedError("nobody listens")] * (REFUSALS - 1)
            world.cloud.failures["attach"] = [*some, ConnectError("no"), *some]
            vm.links[0].lose("cut")
            await trio.sleep(200)
            assert world.cloud.failures["attach"] == []
            vm.end_session("a1", 1)
            await session.ended.wait()
            assert session.outcome.status == 1

    in_virtual_time(main)
