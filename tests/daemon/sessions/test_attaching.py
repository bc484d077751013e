"""Clients at a session: they come and go, and what is for them reaches all that are there."""

import pytest
from claude_vm_tests_memory import Gate, MemoryClient, in_virtual_time, settled

from claude_vm.supervisor.daemon.commands.ps import _row
from claude_vm.supervisor.daemon.sessions.attachment import Attachment
from claude_vm.supervisor.daemon.sessions.surroundings import Surroundings
from claude_vm.supervisor.wire.errors import OutputClosedError


def attach(session, **options):
    client = MemoryClient()
    attachment = Attachment(session, client, **({"quiet": False, "verbose": False} | options))
    session.attach(attachment)
    return client, attachment


def test_a_client_that_comes_late_is_told_that_the_command_runs_and_one_that_goes_ends_nothing(world):
    async def main():
        async with world.supervisor() as supervisor:
            first = MemoryClient()
            session = await supervisor.session(client=first)
            await settled()
            assert first.started_with == [False]
            late, attachment = attach(session)
            assert late.started_with == [False]
            session.say("to all", "urgent")
            session.detach(attachment)
            session.say("to one", "urgent")
            assert [text for _, text in late.notes] == ["to all"]
            assert [text for _, text in first.notes] == ["to all", "to one"]
            session.detach(session.clients[0])
            await settled()
            assert (list(supervisor.sessions.running), session.clients) == (["a1"], [])
            (vm,) = world.cloud.vms.values()
            vm.end_session("a1", 7)
            await session.over.wait()
            assert session.outcome.status == 7

    in_virtual_time(main)


def test_of_two_clients_one_may_close_its_output_and_the_other_goes_on(world, monkeypatch):
    class Closing(MemoryClient):
        async def send_stdout(self, data):
            raise OutputClosedError("closed")

    async def main():
        gate = world.cloud.gate("put_files")
        async with world.supervisor() as supervisor:
            session = await supervisor.session(client=Closing())
            other, _ = attach(session)
            gate.open.set()
            await settled()
            (vm,) = world.cloud.vms.values()
            vm.end_session("a1", 7)
            await session.over.wait()
            assert (session.outcome.status, other.output) == (7, b"hello\n")

    in_virtual_time(main)


@pytest.mark.parametrize("forwarding", [(), (1,), (0, 1)])
def test_the_agent_is_that_of_the_first_client_that_forwards_its_own(world, forwarding):
    asked = []

    class Link:
        async def listen_for_agent(self, path, open_agent):
            asked.append((path, open_agent))

    async def main():
        async with world.supervisor() as supervisor:
            session = await supervisor.session()
            made = [attach(session, forwards_agent=number in forwarding)[1] for number in range(2)]
            path = await session._listen_for_agent(Link())
            wanted = [made[number].open_agent for number in forwarding[:1]]
            assert asked == [(path, opened) for opened in wanted]
            assert path.endswith("/a1") if forwarding else not path

    in_virtual_time(main)


def test_a_session_that_is_stopped_before_the_core_knows_it_ends_as_soon_as_it_does(world, monkeypatch):
    locks = Gate()
    monkeypatch.setattr(Surroundings, "_lock_worktrees", lambda *_: locks.passed())

    async def main():
        async with world.supervisor() as supervisor:
            supervisor.tasks.start_soon(supervisor.session)
            await settled()
            (session,) = supervisor.sessions.running.values()
            assert (locks.reached, _row(session, None).state) == (1, "queued")
            supervisor.dispatcher.stop("a1", "stopped", 143)
            await settled()
            assert not session.over.is_set()
            locks.open.set()
            await session.over.wait()
            assert (session.outcome.status, _row(session, None).state) == (143, "ended")
            assert (supervisor.sessions.running, world.cloud.vms) == ({}, {})

    in_virtual_time(main)
