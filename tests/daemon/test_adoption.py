"""What a supervisor does with what its dead predecessor left: VMs in memory, which outlive it."""

import contextlib
import errno
import json
import os
import socket
import sqlite3
import time

import pytest
import trio
from claude_vm_tests_memory import MemoryDrivers, MemoryProcess, in_virtual_time, key, settled

from claude_vm.context.ports import PortSpec, Publish
from claude_vm.drivers.errors import DriverError, ToolMissingError
from claude_vm.supervisor.core.events import FillRequested, ShutdownRequested
from claude_vm.supervisor.core.policy import PoolPolicy
from claude_vm.supervisor.daemon import adopt, readonly
from claude_vm.supervisor.daemon.errors import CommandError
from claude_vm.supervisor.daemon.ports.published import Ports
from claude_vm.supervisor.daemon.sessions import surroundings
from claude_vm.supervisor.daemon.sessions.sessions import Sessions
from claude_vm.supervisor.daemon.state.journal import Journal
from claude_vm.supervisor.grammar.commands.pool import DrainPool, FillPool, ShowPool
from claude_vm.supervisor.grammar.commands.sessions import Ps, Shell, Stop
from claude_vm.supervisor.grammar.commands.templates import Setup
from claude_vm.supervisor.ssh.errors import ChannelRefusedError, ShellError, StatusLostError
from claude_vm.supervisor.ssh.process import Pty
from claude_vm.supervisor.wire.shortage import NotWritableError

POOL = PoolPolicy(size=1)


async def fill(supervisor, size=1):
    """Have the pool make what is wanted."""
    supervisor.dispatcher.post(FillRequested(at=0.0, key=key(), size=size))
    await settled()


def instances(supervisor):
    return [(str(i.state), i.session_id) for i in supervisor.dispatcher.core.instances()]


def test_a_warm_vm_is_adopted_and_claimed_without_another_clone(world):
    async def main():
        async with world.supervisor(POOL) as first:
            await fill(first)
            assert first.dispatcher.warm_count == 1
        (vm,) = world.cloud.vms.values()
        world.cloud.calls.clear()
        async with world.supervisor(POOL) as second:
            await settled()
            assert second.adopted.warm == (vm.spec.instance_id,)
            assert second.dispatcher.warm_count == 1
            session = await second.session()
            await settled()
            assert session.source == "warm"
            assert vm.sessions == {"a1": None}
            assert [name for name, _ in world.cloud.calls] == ["put_files"]

    in_virtual_time(main)


@pytest.mark.parametrize("method", ["clone", "start"])
def test_what_was_being_prepared_is_deleted(world, method):
    async def main():
        gate = world.cloud.gate(method)
        async with world.supervisor() as first:
            await first.session()
            await settled()
            assert gate.reached == 1
        world.cloud.gates.clear()
        async with world.supervisor(POOL) as second:
            await settled()
            assert second.adopted.warm == second.adopted.sessions == ()
            assert second.dispatcher.instance_count == 0
        assert world.cloud.vms == {}

    in_virtual_time(main)


def test_a_vm_that_a_session_was_given_is_never_taken_for_warm(world):
    """It was killed after the claim was written and before its command ran."""

    async def main():
        async with world.supervisor(POOL) as first:
            await fill(first)
            world.cloud.gate("put_files")
            await first.session()
            await settled()
        world.cloud.gates.clear()
        async with world.supervisor(POOL) as second:
            await settled()
            assert second.adopted.warm == second.adopted.sessions == ()
            assert len(second.adopted.deleted) == 1
        assert world.cloud.vms == {}

    in_virtual_time(main)


@pytest.mark.parametrize("change", ["boot", "generation", "template", "stopped"])
def test_a_warm_vm_that_is_not_to_be_trusted_is_deleted(world, change):
    async def main():
        async with world.supervisor(POOL) as first:
            await fill(first)
        (vm,) = world.cloud.vms.values()
        match change:
            case "boot":
                world.boot = "boot-2"
            case "generation":
                world.cloud.templates["t"] = "g2"
            case "template":
                del world.cloud.templates["t"]
            case "stopped":
                vm.die()
        async with world.supervisor() as second:
            await settled()
            assert second.adopted.warm == ()
            assert second.adopted.deleted == (vm.spec.instance_id,)
        assert world.cloud.vms == {}

    in_virtual_time(main)


def test_without_its_journal_nothing_is_adopted(world):
    async def main():
        async with world.supervisor(POOL) as first:
            await fill(first)
        for path in world.folder.glob("journal.db*"):
            path.unlink()
        async with world.supervisor(POOL) as second:
            await settled()
            assert second.adopted.warm == ()
        assert world.cloud.vms == {}

    in_virtual_time(main)


def test_a_warm_vm_that_does_not_answer_any_more_is_deleted(world):
    async def main():
        async with world.supervisor(POOL) as first:
            await fill(first)
        world.cloud.refuse_connections = True
        async with world.supervisor() as second:
            await settled()
            assert len(second.adopted.warm) == 1
            assert second.dispatcher.instance_count == 0
        assert world.cloud.vms == {}

    in_virtual_time(main)


def test_a_running_session_goes_on_and_is_found(world):
    async def main():
        vm = await world.left_session("a1")
        async with world.supervisor() as second:
            await settled()
            (session,) = second.sessions.running.values()
            assert (session.session_id, session.clients, session.source) == ("a1", [], "resumed")
            assert (session.plan.project, session.plan.command_text) == ("/p", "sleep")
            assert [str(s.state) for s in second.dispatcher.core.sessions()] == ["running"]
            assert vm.running
            vm.end_session("a1", 7)
            await settled()
            assert session.outcome.status == 7
            assert second.sessions.running == {}
            assert [s.session_id for s in second.sessions.ended] == ["a1"]
            assert world.cloud.vms == {}

    in_virtual_time(main)


def test_the_end_of_a_session_without_a_client_waits_for_nothing_that_it_left_behind(world, monkeypatch):
    async def hold(self, limit):
        await trio.sleep_forever()

    async def remaining(self):
        await trio.sleep(1)

    monkeypatch.setattr(MemoryProcess, "read_stdout", hold)
    monkeypatch.setattr(MemoryProcess, "remaining", remaining)

    async def main():
        vm = await world.left_session("a1")
        async with world.supervisor() as second:
            await settled()
            (session,) = second.sessions.running.values()
            begun = trio.current_time()
            vm.end_session("a1", 7)
            await session.over.wait()
            assert (session.outcome.status, trio.current_time() - begun) == (7, 0)

    in_virtual_time(main)


@pytest.mark.parametrize("taken", [False, True])
def test_the_ports_of_a_session_that_goes_on_are_opened_again_or_told(world, taken):
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]

    async def main():
        async with world.supervisor() as first:
            await first.session("a1", publish=Publish((PortSpec(80, port),)))
            await settled()
        with socket.create_server(("127.0.0.1", port if taken else 0)):
            async with world.supervisor() as second:
                await settled()
                (session,) = second.sessions.running.values()
                assert session.plan.publish.words == [f"{port}:80"]
                ((host, guest, problem),) = ((p.host, p.guest, p.problem) for p in session.ports.listed)
                assert (host, guest, session.ports.has(port)) == (port, 80, not taken)
                assert problem == ("Address already in use" if taken else "")
                (vm,) = world.cloud.vms.values()
                vm.end_session("a1", 0)
                await settled()
                assert session.ports.listed == []

    in_virtual_time(main)


@pytest.mark.parametrize(("pty", "ended"), [(None, ["a1"]), (Pty("xterm", 24, 80), [])], ids=["pipes", "pty"])
def test_the_input_of_a_session_on_pipes_ends_when_nobody_is_left_to_write_it(world, pty, ended):
    async def main():
        vm = await world.left_session("a1", pty=pty)
        assert vm.ended_inputs == []
        async with world.supervisor() as second:
            await settled()
            assert list(second.sessions.running) == ["a1"]
            assert vm.ended_inputs == ended

    in_virtual_time(main)


def test_a_session_survives_a_second_death_of_its_supervisor(world):
    async def main():
        await world.left_session("a1")
        for _ in range(2):
            async with world.supervisor() as next_one:
                await settled()
                assert [s.session_id for s in next_one.adopted.sessions] == ["a1"]

    in_virtual_time(main)


def test_a_session_that_ended_while_nobody_watched_has_its_status(world):
    async def main():
        vm = await world.left_session("a1")
        vm.end_session("a1", 9)
        async with world.supervisor() as second:
            await settled()
            (ended,) = second.sessions.ended
            assert (ended.outcome.status, ended.outcome.code) == (9, "")
        assert world.cloud.vms == {}

    in_virtual_time(main)


def test_a_session_that_is_out_of_reach_is_not_given_up_as_long_as_its_vm_lives(world):
    async def main():
        vm = await world.left_session("a1")
        world.cloud.refuse_connections = True
        async with world.supervisor() as second:
            await trio.sleep(100)
            assert list(second.sessions.running) == ["a1"]
            world.cloud.refuse_connections = False
            await trio.sleep(100)
            vm.links[-1].lose("no answer to keep-alives")
            await trio.sleep(100)
            vm.end_session("a1", 5)
            await settled()
            assert [s.outcome.status for s in second.sessions.ended] == [5]
        assert world.cloud.vms == {}

    in_virtual_time(main)


@pytest.mark.parametrize(
    "error", [ShellError("no answer"), ChannelRefusedError("no"), StatusLostError("none")], ids=str
)
def test_a_session_whose_holder_does_not_answer_is_not_given_up_as_long_as_its_vm_lives(world, error):
    async def main():
        vm = await world.left_session("a1")
        world.cloud.failures["attach"] = [error] * 3
        async with world.supervisor() as second:
            await trio.sleep(100)
            assert world.cloud.failures["attach"] == []
            assert list(second.sessions.running) == ["a1"]
            vm.end_session("a1", 5)
            await settled()
            assert [s.outcome.status for s in second.sessions.ended] == [5]

    in_virtual_time(main)


def test_a_session_that_its_guest_forgot_is_told_as_lost_and_its_vm_deleted(world):
    async def main():
        vm = await world.left_session("a1")
        vm.sessions.clear()
        async with world.supervisor() as second:
            await settled()
            (ended,) = second.sessions.ended
            assert (ended.outcome.status, ended.outcome.code) == (125, "session-lost")
        assert world.cloud.vms == {}

    in_virtual_time(main)


def test_a_session_without_a_client_can_be_stopped(world):
    async def main():
        await world.left_session("a1")
        async with world.supervisor() as second:
            await settled()
            second.dispatcher.stop("a1", "stopped", 143)
            await settled()
            assert [s.outcome.status for s in second.sessions.ended] == [143]
            assert second.sessions.running == {}
        assert world.cloud.vms == {}

    in_virtual_time(main)


def test_a_vm_that_dies_under_a_session_without_a_client_ends_it(world):
    async def main():
        vm = await world.left_session("a1")
        async with world.supervisor() as second:
            await settled()
            vm.die("somebody killed it")
            await settled()
            (ended,) = second.sessions.ended
            assert (ended.outcome.code, ended.outcome.message) == ("vm-died", "somebody killed it")
        assert world.cloud.vms == {}

    in_virtual_time(main)


def test_a_session_without_a_client_ends_with_its_supervisor_when_that_is_told_to_end(world):
    async def main():
        await world.left_session("a1")
        async with world.supervisor() as second:
            await settled()
            second.dispatcher.post(ShutdownRequested(at=0.0))
            await second.dispatcher.stopped.wait()
        assert world.cloud.vms == {}

    in_virtual_time(main)


def test_an_adopted_vm_keeps_its_age(world):
    async def main():
        async with world.supervisor(POOL) as first:
            await fill(first)
        connection = sqlite3.connect(world.folder / "journal.db")
        connection.execute("UPDATE instances SET made_at=?", (time.time() - 990,))
        connection.commit()
        connection.close()
        (old,) = world.cloud.vms
        async with world.supervisor(PoolPolicy(size=1, max_age_s=1000.0)):
            await settled()
            assert list(world.cloud.vms) == [old]
            await trio.sleep(20)
            await settled()
            assert old not in world.cloud.vms

    in_virtual_time(main)


def test_the_sessions_that_were_lost_are_told_from_those_that_go_on(world):
    async def main():
        async with world.supervisor() as first:
            for name in ("a1", "b2"):
                await first.session(name)
                await settled()
        for instance_id, vm in list(world.cloud.vms.items()):
            if "b2" in vm.sessions:
                del world.cloud.vms[instance_id]
        async with world.supervisor() as second:
            assert [s.session_id for s in second.adopted.sessions] == ["a1"]
            assert [left.session.session_id for left in second.adopted.lost] == ["b2"]

    in_virtual_time(main)


async def left_sessions(world, *names):
    """Run sessions, kill their supervisor, and return the VMs in which they go on, by session."""
    async with world.supervisor() as supervisor:
        for name in names:
            await supervisor.session(name)
            await settled()
    return {name: vm for vm in world.cloud.vms.values() for name in vm.sessions}


def ended(supervisor):
    return {s.session_id: (s.outcome.status, s.outcome.code) for s in supervisor.sessions.ended}


def told(supervisor, session_id):
    """The note of the one step that is known of a session."""
    (step,) = supervisor.dispatcher.core.session_story(session_id).steps
    return step.note


def change_row(world, statement, *values):
    with contextlib.closing(sqlite3.connect(world.folder / "journal.db")) as connection, connection:
        assert connection.execute(statement, values).rowcount == 1


def damage_instance(world, vm, column, value):
    change_row(world, f"UPDATE instances SET {column}=? WHERE instance_id=?", value, vm.spec.instance_id)


def lose_key(world, vm):
    access = json.loads(read_column(world, vm, "access"))
    damage_instance(world, vm, "access", json.dumps(access | {"client_key": str(world.folder / "gone")}))


def read_column(world, vm, column):
    with contextlib.closing(sqlite3.connect(world.folder / "journal.db")) as connection:
        query = f"SELECT {column} FROM instances WHERE instance_id=?"
        return connection.execute(query, (vm.spec.instance_id,)).fetchone()[0]


LOSSES = {
    "its VM is gone": lambda world, vm: world.cloud.vms.pop(vm.spec.instance_id),
    "its VM does not run": lambda _, vm: vm.die(),
    "the key to its guest is gone": lose_key,
    "the host was restarted since": lambda w, vm: damage_instance(w, vm, "boot_id", "boot-0"),
    "its journal has it as a VM of another driver": lambda w, vm: damage_instance(
        w, vm, "key", json.dumps(json.loads(read_column(w, vm, "key")) | {"driver": "another"})
    ),
    "can't be read (key)": lambda w, vm: damage_instance(w, vm, "key", "{"),
    "can't be read (access)": lambda w, vm: damage_instance(w, vm, "access", "{"),
    "can't be read (row)": lambda w, vm: damage_instance(w, vm, "made_at", "yesterday"),
    "can't be read (session)": lambda w, _: change_row(
        w, "UPDATE sessions SET created_at='yesterday' WHERE session_id='b2'"
    ),
}


@pytest.mark.parametrize("why", LOSSES)
def test_a_session_that_can_not_be_gone_on_with_is_told_with_the_reason_and_the_others_go_on(world, why):
    async def main():
        vms = await left_sessions(world, "a1", "b2", "c3")
        LOSSES[why](world, vms["b2"])
        async with world.supervisor() as second:
            await settled()
            assert set(second.sessions.running) == {"a1", "c3"}
            assert ended(second) == {"b2": (125, "session-lost")}
            assert told(second, "b2").startswith("session-lost: its supervisor died, and ")
            assert why.partition(" (")[0] in told(second, "b2")
            assert set(world.cloud.vms) == {vms[name].spec.instance_id for name in ("a1", "c3")}
            assert {left.session.session_id for left in second.journal.left_instances()} == {"a1", "c3"}

    in_virtual_time(main)


def test_a_bug_behind_the_cores_decision_ends_that_session_alone(world, monkeypatch):
    """The core has taken the session over, and what follows that fails."""
    begin = Sessions.begin

    async def broken(sessions, session, request):
        if session.session_id == "b2":
            request()
            raise ValueError("broken")
        await begin(sessions, session, request)

    async def main():
        vms = await left_sessions(world, "a1", "b2", "c3")
        monkeypatch.setattr(Sessions, "begin", broken)
        async with world.supervisor() as second:
            await settled()
            assert set(second.sessions.running) == {"a1", "c3"}
            assert set(world.cloud.vms) == {vms[name].spec.instance_id for name in ("a1", "c3")}

    in_virtual_time(main)


def test_a_session_whose_id_is_gone_from_the_journal_is_told_without_it_and_its_vm_deleted(world):
    async def main():
        vms = await left_sessions(world, "a1", "b2")
        change_row(world, "UPDATE sessions SET session_id='' WHERE session_id='b2'")
        async with world.supervisor() as second:
            await settled()
            assert set(second.sessions.running) == {"a1"}
            assert ended(second) == {"?": (125, "session-lost")}
            assert set(world.cloud.vms) == {vms["a1"].spec.instance_id}

    in_virtual_time(main)


@pytest.mark.parametrize("where", ["ports", "judging"])
def test_a_bug_around_one_found_session_ends_that_one_alone(world, where, monkeypatch):
    """Both are what the take-over of one session goes through."""

    def fail(*_):
        raise ValueError("embedded null byte")

    async def main():
        vms = await left_sessions(world, "a1", "b2", "c3")
        if where == "ports":
            reserve = Ports.reserve
            monkeypatch.setattr(Ports, "reserve", lambda p: fail() if p._session_id == "b2" else reserve(p))
        else:
            lose_key(world, vms["b2"])
            access = os.access
            monkeypatch.setattr(
                adopt.os, "access", lambda path, mode: fail() if path.name == "gone" else access(path, mode)
            )
        async with world.supervisor() as second:
            await settled()
            assert set(second.sessions.running) == {"a1", "c3"}
            assert ended(second) == {"b2": (125, "session-lost")}
            assert told(second, "b2").endswith("can't be taken over: ValueError: embedded null byte")
            assert set(world.cloud.vms) == {vms[name].spec.instance_id for name in ("a1", "c3")}

    in_virtual_time(main)


@pytest.mark.parametrize("method", ["open", "list_instances"])
@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ToolMissingError("there is no QEMU"), "tool-missing", "there is no QEMU"),
        (PermissionError("denied"), "driver-failed", "PermissionError: denied"),
        (KeyError("pid"), "driver-failed", "KeyError: 'pid'"),
    ],
    ids=str,
)
def test_sessions_whose_driver_refuses_are_told_with_its_error_and_left_to_the_next_supervisor(
    world, method, error, code, words
):
    async def main():
        vms = await left_sessions(world, "a1", "b2")
        world.cloud.failures[method] = [error]
        async with world.supervisor() as second:
            await settled()
            assert ended(second) == {"a1": (125, code), "b2": (125, code)}
            assert (
                told(second, "b2") == f"{code}: its supervisor died, and its driver can't be asked: {words}"
            )
            assert second.adopted.lost == ()
            assert all(vm.running for vm in vms.values())
        async with world.supervisor() as third:
            await settled()
            assert set(third.sessions.running) == {"a1", "b2"}

    in_virtual_time(main)


def test_what_follows_a_session_waits_where_nobody_knows_whether_it_goes_on(world, monkeypatch):
    unlocked = []
    monkeypatch.setattr(surroundings, "release_stale", lambda repository, _: unlocked.append(str(repository)))

    async def main():
        await left_sessions(world, "a1")
        with Journal.open(world.folder / "journal.db", world.boot) as (journal, _):
            journal.lock_worktrees("/repository", "a1")
        world.cloud.failures["open"] = [DriverError("not now")]
        async with world.supervisor() as second:
            await settled()
            assert (second.journal.locked_repositories(), unlocked) == ([("/repository", "a1")], [])
        world.cloud.vms.clear()
        async with world.supervisor() as third:
            await settled()
            assert (third.journal.locked_repositories(), unlocked) == ([], ["/repository"])

    in_virtual_time(main)


@pytest.fixture
def stand_in(world, tmp_path, monkeypatch):
    """Open the supervisor that stands in for the daemon, whose journal is the world's."""
    supervisors = tmp_path / "home" / "supervisors"
    supervisors.mkdir(parents=True)
    (supervisors / "daemon").symlink_to(world.folder)
    (world.folder / "lock").touch()
    monkeypatch.setattr(readonly, "DriverSet", lambda *_: MemoryDrivers(world.cloud))
    monkeypatch.setattr(readonly, "boot_id", lambda: world.boot)
    short = NotWritableError(errno.ENOSPC, "/j")
    return lambda: readonly.open_readonly_supervisor(supervisors.parent, "daemon", short)


async def leave_a_session_and_a_ready_vm(world):
    async with world.supervisor(POOL) as first:
        await fill(first)
        await first.session("s1")
        await settled()
        await fill(first)
    assert len(world.cloud.vms) == 2
    world.cloud.calls.clear()


@pytest.mark.parametrize("request_", [Ps(), ShowPool(), Stop(all=True)])
def test_who_stands_in_takes_over_sessions_and_leaves_all_as_it_was(world, stand_in, request_):
    async def main():
        await leave_a_session_and_a_ready_vm(world)
        async with stand_in() as supervisor:
            remark = await supervisor.prepare(request_)
            await settled()
            assert list(supervisor.sessions.running) == ["s1"]
            assert "1 VM(s) without a session are left" in remark
            assert [str(i.state) for i in supervisor.dispatcher.core.instances()] == ["running"]
        assert [vm.running for vm in world.cloud.vms.values()] == [True, True]
        assert "delete" not in {name for name, _ in world.cloud.calls}
        async with world.supervisor(POOL) as third:
            await settled()
            assert len(third.adopted.warm) == len(third.adopted.sessions) == 1

    in_virtual_time(main)


def test_what_was_ready_gives_way_to_who_makes_room_and_the_session_goes_on(world, stand_in):
    async def main():
        await leave_a_session_and_a_ready_vm(world)
        async with stand_in() as supervisor:
            await supervisor.prepare(DrainPool(all=True))
            assert supervisor.dispatcher.instance_count == len(supervisor.sessions.running) == 1
        (vm,) = world.cloud.vms.values()
        assert vm.running
        assert vm.sessions == {"s1": None}

    in_virtual_time(main)


def test_for_a_session_that_was_stopped_without_room_the_next_daemon_does_what_is_pending(world, stand_in):
    async def main():
        await leave_a_session_and_a_ready_vm(world)
        async with stand_in() as supervisor:
            await supervisor.prepare(Stop(all=True))
            await settled()
            supervisor.dispatcher.stop("s1", "stopped", 143)
            await settled()
            assert len(world.cloud.vms) == 1
        async with world.supervisor(POOL) as third:
            await settled()
            assert [left.session.session_id for left in third.adopted.lost] == ["s1"]
            assert len(third.adopted.warm) == 1

    in_virtual_time(main)


@pytest.mark.parametrize("request_", [Shell(), Setup(), FillPool()])
def test_who_stands_in_refuses_what_needs_room(world, stand_in, request_):
    async def main():
        async with stand_in() as supervisor:
            with pytest.raises(CommandError) as caught:
                await supervisor.prepare(request_)
            assert caught.value.code == "disk-full"

    in_virtual_time(main)
