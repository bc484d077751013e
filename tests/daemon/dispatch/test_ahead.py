"""A connection is begun while the driver still starts the VM."""

import trio
from claude_vm_tests_memory import in_virtual_time, settled

from claude_vm.drivers.errors import BootError
from claude_vm.supervisor.ssh.errors import ConnectError


def test_the_connection_is_there_when_the_start_ends_and_is_the_one_that_is_used(world):
    async def main():
        gate = world.cloud.gate("end_of_start")
        async with world.supervisor() as supervisor:
            await supervisor.session("a1")
            await settled()
            (vm,) = world.cloud.vms.values()
            assert (gate.reached, len(vm.links)) == (1, 1)
            gate.open.set()
            await settled()
            assert list(vm.sessions) == ["a1"]
            assert len(vm.links) == 1

    in_virtual_time(main)


def test_a_driver_that_tells_nothing_before_its_end_is_connected_to_then(world):
    async def main():
        world.cloud.tells = 0
        async with world.supervisor() as supervisor:
            await supervisor.session("a1")
            await settled()
            (vm,) = world.cloud.vms.values()
            assert (list(vm.sessions), len(vm.links)) == (["a1"], 1)

    in_virtual_time(main)


def test_a_connection_that_fails_before_the_guest_is_ready_is_tried_again(world):
    async def main():
        gate = world.cloud.gate("end_of_start")
        world.cloud.failures["connect"] = [ConnectError("too early")]
        async with world.supervisor() as supervisor:
            await supervisor.session("a1")
            await settled()
            gate.open.set()
            await settled()
            (vm,) = world.cloud.vms.values()
            assert (list(vm.sessions), len(vm.links)) == (["a1"], 1)

    in_virtual_time(main)


def test_a_guest_that_is_ready_and_refuses_is_told_once_and_deleted(world):
    async def main():
        gate = world.cloud.gate("connect")
        world.cloud.refuse_connections = True
        async with world.supervisor() as supervisor:
            session = await supervisor.session("a1")
            await settled()
            gate.open.set()
            await trio.sleep(10)
            assert session.outcome.message == "nobody answers"
        assert world.attempts == 1  # it failed when the guest was ready: another would too
        assert world.cloud.vms == {}

    in_virtual_time(main)


def test_a_guest_that_did_not_come_up_is_left_for_the_one_that_takes_its_place(world):
    async def main():
        world.cloud.tells = 2
        async with world.supervisor() as supervisor:
            await supervisor.session("a1")
            await settled()
            (vm,) = world.cloud.vms.values()
            assert list(vm.sessions) == ["a1"]
            assert [bool(link.lost) for link in vm.links] == [True, False]

    in_virtual_time(main)


def test_a_start_that_fails_is_told_and_leaves_no_connection(world):
    async def main():
        gate = world.cloud.gate("end_of_start")
        world.cloud.failures["end_of_start"] = [BootError("the kernel crashed")]
        async with world.supervisor() as supervisor:
            session = await supervisor.session("a1")
            await settled()
            (vm,) = world.cloud.vms.values()
            (link,) = vm.links
            gate.open.set()
            await settled()
            assert session.outcome.message == "the kernel crashed"
            assert link.closed
        assert world.cloud.vms == {}

    in_virtual_time(main)
