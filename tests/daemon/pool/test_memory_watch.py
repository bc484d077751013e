"""What the core is told of the memory that VMs take, in virtual time; `test_memory` is about our own."""

import pytest
import trio
from claude_vm_tests_memory import in_virtual_time, key, settled

from claude_vm.drivers.errors import DriverError
from claude_vm.supervisor.core.policy import PoolPolicy
from claude_vm.supervisor.daemon.pool.memory import LOOK_S, LOOKS_PER_WEIGHING
from claude_vm.supervisor.daemon.state.journal import KEPT_KINDS, Journal

WEIGHING_S = LOOK_S * LOOKS_PER_WEIGHING
POLICY = PoolPolicy(size=1, max_instances=8, memory_budget_mib=10_000, memory_reserve_mib=500)


def watched(supervisor):
    (view,) = supervisor.dispatcher.core.pools()
    return view.takes_mib, view.is_measured


def test_a_sessions_vm_tells_what_the_next_one_will_take_before_that_is_made(world):
    async def main():
        async with world.supervisor(POLICY) as supervisor:
            await supervisor.session("s1")
            assert watched(supervisor) == (512, False)
            await settled()
            assert watched(supervisor) == (250, True)

    in_virtual_time(main)


def test_ready_vms_are_looked_at_again_and_the_host_too(world):
    available = [20_000]

    async def main():
        async with world.supervisor(POLICY, available=lambda: available[0]) as supervisor:
            supervisor.fill()
            await trio.sleep(1)
            (vm,) = world.cloud.vms.values()
            vm.taken_mib = 400
            await trio.sleep(WEIGHING_S)
            assert watched(supervisor) == (500, True)
            available[0] = 15_000
            await trio.sleep(LOOK_S)
            assert supervisor.dispatcher.core.memory.available_mib == 15_000
            available[0] = 499
            await trio.sleep(LOOK_S)
            assert supervisor.dispatcher.core.pools()[0].warm == 0
            assert world.cloud.vms == {}

    in_virtual_time(main)


def test_the_next_supervisor_knows_what_a_vm_takes_and_takes_over_as_many(world):
    policy = PoolPolicy(size=1, max_instances=8, memory_budget_mib=600)

    async def main():
        async with world.supervisor(policy) as supervisor:
            supervisor.fill()
            await trio.sleep(1)
            supervisor.fill(2)
            await trio.sleep(1)
            assert supervisor.dispatcher.core.pools()[0].warm == 2
        async with world.supervisor(policy) as supervisor:
            assert watched(supervisor) == (250, True)
            await trio.sleep(1)
            assert supervisor.dispatcher.core.pools()[0].warm == 2

    in_virtual_time(main)


@pytest.mark.parametrize("trouble", [DriverError("no"), RuntimeError("a bug")])
def test_a_vm_that_can_not_be_measured_counts_as_before_and_ends_nobody(world, trouble):
    async def main():
        async with world.supervisor(POLICY) as supervisor:
            world.cloud.failures["taken_mib"] = [trouble] * 3
            supervisor.fill()
            await trio.sleep(2.5 * WEIGHING_S)
            assert watched(supervisor) == (512, False)
            await trio.sleep(WEIGHING_S)
            assert watched(supervisor) == (250, True)

    in_virtual_time(main)


def test_nobody_looks_as_long_as_nothing_is_ready_or_wanted(world):
    async def main():
        looks = []
        async with world.supervisor(POLICY, available=lambda: looks.append(1) or 9999):
            await trio.sleep(10 * LOOK_S)
        assert len(looks) == 1  # at the start

    in_virtual_time(main)


def test_of_an_unlimited_number_of_kinds_those_noted_last_are_kept(world):
    with Journal.open(world.folder / "journal.db", "boot") as (journal, _):
        for n in range(2 * KEPT_KINDS):
            journal.note_memory(key(f"g{n}").kind, 100 + n)
        found = journal.memory()
    assert len(found) == KEPT_KINDS
    assert found[-1] == (key(f"g{2 * KEPT_KINDS - 1}").kind, 100 + 2 * KEPT_KINDS - 1)
