"""The dispatcher: effects become calls, calls become answers. VMs in memory, virtual time."""

import anyio
import pytest
import trio
from claude_vm_tests_memory import NAME, in_virtual_time, key, settled, template
from structlog.testing import capture_logs

from claude_vm.drivers.errors import DriverError, GuestError
from claude_vm.supervisor.core.events import FillRequested, ShutdownRequested
from claude_vm.supervisor.core.invariants import BrokenInvariant
from claude_vm.supervisor.core.policy import PoolPolicy
from claude_vm.supervisor.daemon.dispatch.instance import WATCH_AGAIN_S

POOL = PoolPolicy(size=1)
PAUSED = PoolPolicy(size=0, paused=1, prestart_drivers=frozenset({NAME}))


def fill(supervisor, size=1):
    supervisor.dispatcher.post(FillRequested(at=anyio.current_time(), key=key(), size=size))


def calls(world):
    return [name for name, _ in world.cloud.calls]


def names(session):
    return [name for name, _ in session.marks]


def test_a_wish_for_a_warm_vm_is_answered_at_once_and_both_shells_wait_in_it(world):
    async def main():
        async with world.supervisor(POOL) as supervisor:
            fill(supervisor)
            assert [str(i.state) for i in supervisor.dispatcher.core.instances()] == ["cloning"]
            await settled()
            assert supervisor.dispatcher.warm_count == 1
            (vm,) = world.cloud.vms.values()
            assert vm.primed == {"pty", "pipes"}

    in_virtual_time(main)


def test_a_core_that_contradicts_itself_is_told_in_the_log_and_goes_no_further(world):
    async def main():
        async with world.supervisor(POOL) as supervisor:
            fill(supervisor)
            await settled()
            supervisor.dispatcher.core._supply._pools.memory.used_mib += 1
            with capture_logs() as logs, pytest.raises(BrokenInvariant):
                fill(supervisor)
            assert logs == [
                {
                    "event": "core-broken",
                    "log_level": "critical",
                    "after": "FillRequested",
                    "broken": "memory: the sums are right",
                }
            ]

    in_virtual_time(main)


def test_a_core_is_not_validated_where_nobody_asks_for_it(world, monkeypatch):
    monkeypatch.delenv("CLAUDE_VM_VALIDATE")

    async def main():
        async with world.supervisor(POOL) as supervisor:
            supervisor.dispatcher.core.validate = None  # it would be called
            fill(supervisor)
            await settled()
            assert supervisor.dispatcher.warm_count == 1

    in_virtual_time(main)


def test_a_vm_that_is_made_for_a_session_waits_with_the_one_shell_that_it_needs(world):
    async def main():
        async with world.supervisor() as supervisor:
            session = await supervisor.session()
            await settled()
            (vm,) = world.cloud.vms.values()
            assert vm.primed == {"pipes"}
            assert session.client.output == b"hello\n"

    in_virtual_time(main)


def test_a_sessions_neighbours_are_the_vms_of_others_and_none_that_has_run_nothing(world):
    async def main():
        async with world.supervisor(POOL) as supervisor:
            one, other = (
                await supervisor.session("a1"),
                await supervisor.session("a2", key=key(memory_mib=1024)),
            )
            fill(supervisor)
            await settled()
            assert supervisor.dispatcher.warm_count
            vms = world.cloud.vms.values()
            pids = {name: vm.port for vm in vms for name in vm.sessions}  # a process's number here
            assert [*one.ports._neighbours()] == [pids["a2"]]
            assert [*other.ports._neighbours()] == [pids["a1"]]
            assert len(vms) > 2

    in_virtual_time(main)


def test_the_marks_of_a_session_whose_vm_is_made_are_in_order(world):
    async def main():
        async with world.supervisor() as supervisor:
            session = await supervisor.session()
            await settled()
            (vm,) = world.cloud.vms.values()
            vm.end_session("a1", 0)
            await session.over.wait()
            (ended,) = supervisor.sessions.ended
            assert [name for name, _ in ended.marks] == [
                "requested", "claimed", "clone", "restore", "identity", "mounts", "connect",
                "prime", "files", "start", "first-output", "ended", "deleted",
            ]  # fmt: skip
            assert [at for _, at in ended.marks] == sorted(at for _, at in ended.marks)
            assert ended.source == "made"
            assert (ended.plan.launch, ended.plan.files) == (None, ())

    in_virtual_time(main)


def test_the_marks_of_a_warm_session_have_nothing_of_its_vms_making(world):
    async def main():
        async with world.supervisor(POOL) as supervisor:
            fill(supervisor)
            await settled()
            session = await supervisor.session()
            await settled()
            assert names(session) == ["requested", "claimed", "files", "start", "first-output"]
            assert session.source == "warm"

    in_virtual_time(main)


def test_a_vm_that_was_started_ahead_goes_on_when_a_session_comes(world):
    async def main():
        async with world.supervisor(PAUSED) as supervisor:
            first = await supervisor.session("a1")
            await settled()
            await trio.sleep(1)
            await settled()
            assert calls(world).count("prestart") == 1
            assert [str(i.state) for i in supervisor.dispatcher.core.instances()] == ["running", "paused"]
            world.cloud.calls.clear()
            second = await supervisor.session("a2")
            await settled()
            assert calls(world)[:2] == ["start", "put_files"]
            assert (first.source, second.source) == ("made", "paused")
            assert "clone" not in names(second)
            assert "restore" in names(second)

    in_virtual_time(main)


def test_a_process_that_was_started_ahead_may_be_replaced_by_the_start(world):
    async def main():
        async with world.supervisor(PAUSED) as supervisor:
            await supervisor.session("a1")
            await settled()
            await trio.sleep(1)
            await settled()
            world.cloud.replaces_processes = True
            second = await supervisor.session("a2")
            await settled()
            assert second.source == "paused"
            assert second.client.output == b"hello\n"

    in_virtual_time(main)


@pytest.mark.parametrize(
    ("policy", "method", "phase"),
    [(POOL, "clone", "clone"), (PAUSED, "prestart", "start"), (POOL, "start", "start")],
)
def test_a_session_takes_over_the_vm_that_is_being_made_ready(world, policy, method, phase):
    async def main():
        async with world.supervisor(policy) as supervisor:
            gate = world.cloud.gate(method)
            fill(supervisor, size=None)
            await settled()
            session = await supervisor.session()
            await settled()
            assert (session.phase, session.source) == (phase, "making")
            gate.open.set()
            await settled()
            assert (session.phase, session.source) == ("run", "making")
            assert session.client.output == b"hello\n"
            assert calls(world).count("clone") == 1

    in_virtual_time(main)


def test_a_warm_vm_whose_connection_is_lost_is_replaced(world):
    async def main():
        async with world.supervisor(POOL) as supervisor:
            fill(supervisor)
            await settled()
            (vm,) = world.cloud.vms.values()
            vm.links[0].lose("no answer to keep-alives")
            await settled()
            assert vm.spec.instance_id not in world.cloud.vms
            await trio.sleep(10)
            await settled()
            assert supervisor.dispatcher.warm_count == 1
            assert len(world.cloud.vms) == 1

    in_virtual_time(main)


@pytest.mark.parametrize("policy", [POOL, PAUSED])
def test_a_vm_that_dies_before_anybody_claims_it_is_replaced(world, policy):
    async def main():
        async with world.supervisor(policy) as supervisor:
            await supervisor.session()
            await settled()
            await trio.sleep(1)
            await settled()
            (vm,) = (v for v in world.cloud.vms.values() if not v.sessions)
            vm.die()
            await settled()
            assert vm.spec.instance_id not in world.cloud.vms
            await trio.sleep(10)
            await settled()
            assert len(world.cloud.vms) == 2

    in_virtual_time(main)


def test_a_host_without_room_refuses_the_clone_and_sessions_go_on(world):
    room = [True]

    def admit(spec):
        if not room[0]:
            raise DriverError("the disk is full", detail="its words\nand more")

    async def main():
        async with world.supervisor(admit=admit) as supervisor:
            first = await supervisor.session("a1")
            await settled()
            room[0] = False
            second = await supervisor.session("a2")
            await second.ended.wait()
            assert second.outcome.message == "the disk is full"
            assert second.outcome.detail == ("its words", "and more")
            assert not first.ended.is_set()
            assert len(world.cloud.vms) == 1

    in_virtual_time(main)


def test_a_session_whose_ready_vm_does_not_answer_runs_in_another_one_and_outlives_its_supervisor(world):
    async def main():
        async with world.supervisor(POOL) as supervisor:
            fill(supervisor)
            await settled()
            (lost,) = world.cloud.vms
            world.cloud.failures["put_files"] = [GuestError("no answer")]
            deletion = world.cloud.gate("delete")
            session = await supervisor.session("a1")
            await settled()
            assert not session.ended.is_set()
            assert session.source == "made"
            deletion.open.set()
            await settled()
            assert lost not in world.cloud.vms
            assert [list(vm.sessions) for vm in world.cloud.vms.values() if vm.sessions] == [["a1"]]
        async with world.supervisor(POOL) as supervisor:
            assert [s.session_id for s in supervisor.adopted.sessions] == ["a1"]

    in_virtual_time(main)


def test_a_templates_ready_vms_are_gone_before_it_is_deleted(world):
    async def main():
        async with world.supervisor(POOL) as supervisor:
            fill(supervisor)
            await settled()
            gate = world.cloud.gate("delete")
            supervisor.dispatcher.template_changed(NAME, "t", None)
            gone = []

            async def wait():
                await supervisor.dispatcher.unused(NAME, "t")
                gone.append(True)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await settled()
                assert not gone
                gate.open.set()
            assert world.cloud.vms == {}
            await trio.sleep(100)
            await settled()
            assert world.cloud.vms == {}

    in_virtual_time(main)


def test_a_rebuilt_template_replaces_what_is_ready(world):
    async def main():
        async with world.supervisor(POOL) as supervisor:
            fill(supervisor)
            await settled()
            world.cloud.templates["t"] = "g2"
            supervisor.dispatcher.template_changed(NAME, "t", template("t", "g2"))
            await settled()
            await trio.sleep(10)
            await settled()
            assert [vm.spec.generation for vm in world.cloud.vms.values()] == ["g2"]

    in_virtual_time(main)


def test_ready_vms_go_with_their_supervisor_when_it_is_told_to_end(world):
    async def main():
        async with world.supervisor(POOL) as supervisor:
            fill(supervisor)
            await settled()
            supervisor.dispatcher.post(ShutdownRequested(at=anyio.current_time()))
            await supervisor.dispatcher.stopped.wait()
            assert world.cloud.vms == {}

    in_virtual_time(main)


def test_ended_sessions_are_kept_in_their_order(world):
    async def main():
        async with world.supervisor() as supervisor:
            for number in range(3):
                session = await supervisor.session(f"a{number}")
                await settled()
                for vm in world.cloud.vms.values():
                    vm.end_session(session.session_id, 0)
                await session.over.wait()
            assert [s.session_id for s in supervisor.sessions.ended] == ["a0", "a1", "a2"]

    in_virtual_time(main)


def test_clocks_are_set_in_all_guests_that_run(world):
    async def main():
        async with world.supervisor(POOL) as supervisor:
            fill(supervisor)
            await settled()
            await supervisor.session("a1")
            await settled()
            await trio.sleep(5)
            await settled()
            world.cloud.calls.clear()
            supervisor.dispatcher.set_clocks()
            await settled()
            assert sorted(world.cloud.calls) == sorted(("set_clock", name) for name in world.cloud.vms)

    in_virtual_time(main)


def test_a_clock_that_cannot_be_set_for_whatever_reason_ends_nothing_else(world):
    async def main():
        async with world.supervisor() as supervisor:
            session = await supervisor.session()
            await settled()
            world.cloud.failures["set_clock"] = [TimeoutError("a bug"), DriverError("no answer")]
            for _ in range(3):
                supervisor.dispatcher.set_clocks()
                await settled()
            assert calls(world).count("set_clock") == 3
            assert not session.ended.is_set()

    in_virtual_time(main)


def test_a_watcher_that_fails_ends_nothing_and_watches_again(world):
    async def main():
        async with world.supervisor() as supervisor:
            world.cloud.failures["wait_stopped"] = [OSError("no file handles"), OSError("still none")]
            session = await supervisor.session()
            await settled()
            await trio.sleep(3 * WATCH_AGAIN_S)
            assert world.cloud.failures["wait_stopped"] == []
            assert not session.ended.is_set()
            (vm,) = world.cloud.vms.values()
            vm.die("it was killed")
            await session.ended.wait()
            assert session.outcome.code == "vm-died"

    in_virtual_time(main)


def test_a_connection_whose_watcher_fails_is_taken_for_lost(world):
    async def main():
        async with world.supervisor(POOL) as supervisor:
            fill(supervisor)
            await settled()
            (vm,) = world.cloud.vms.values()
            vm.breaks_watching = True
            vm.links[0].lose("no answer to keep-alives")
            await settled()
            assert vm.spec.instance_id not in world.cloud.vms

    in_virtual_time(main)
