"""The streams of a session: what is carried after the main command has ended. In virtual time."""

import anyio
import pytest
import trio
from claude_vm_tests_memory import MemoryClient, in_virtual_time, settled

from claude_vm.supervisor.daemon.sessions.relay import BACKLOG, CHUNK, TRICKLE_S, relay
from claude_vm.supervisor.wire.server import Signal


class Client:
    """One that takes a piece of output in `pause_s` seconds."""

    def __init__(self, pause_s=0.0):
        self.pause_s = pause_s
        self.taken = 0

    async def receive_stdin(self):
        await anyio.sleep_forever()

    async def send_stdout(self, data):
        await anyio.sleep(self.pause_s)
        self.taken += len(data)

    send_stderr = send_stdout


class Process:
    """A main command that has ended. It, or what it left behind, writes a piece every `pause_s` seconds."""

    is_lost = False

    def __init__(self, *, pieces=None, pause_s=0.0, runs_s=0.0):
        self.pieces = pieces
        self.pause_s = pause_s
        self.runs_s = runs_s

    async def read_stdout(self, limit):
        await anyio.sleep(self.pause_s)
        if self.pieces is None:
            return bytes(limit)
        self.pieces -= 1
        return bytes(limit) if self.pieces >= 0 else b""

    async def read_stderr(self, limit):
        await anyio.sleep_forever()

    async def write(self, data):
        raise AssertionError(data)

    def write_eof(self):
        pass

    async def wait(self):
        await anyio.sleep(self.runs_s)
        return 7


async def never():
    await anyio.sleep_forever()


def carry(client, process, next_signal=never):
    """Return the exit status, and after how many seconds it came."""

    async def main():
        begun = trio.current_time()
        status = await relay(client, process, on_output=lambda _: None, next_signal=next_signal)
        return status, trio.current_time() - begun

    return in_virtual_time(main)


@pytest.mark.parametrize("pause_s", [0.0, 0.001, 0.1, 0.4])
def test_a_writer_that_is_left_behind_does_not_hold_the_exit_status_back(pause_s):
    status, seconds = carry(Client(), Process(pause_s=pause_s))
    assert status == 7
    assert seconds < TRICKLE_S + 1.5


def test_a_writer_that_never_pauses_is_cut_off_before_much_has_come():
    client = Client()
    status, seconds = carry(client, Process())
    assert (status, client.taken) == (7, BACKLOG)
    assert seconds < 1.5


def test_a_slow_reader_gets_all_that_the_command_wrote():
    client = Client(pause_s=20.0)
    status, _ = carry(client, Process(pieces=20))
    assert (status, client.taken) == (7, 20 * CHUNK)


def test_what_comes_before_the_commands_end_has_no_limit():
    client = Client()
    status, seconds = carry(client, Process(pieces=1000, pause_s=0.1, runs_s=200.0))
    assert (status, client.taken) == (7, 1000 * CHUNK)
    assert seconds >= 200


def test_a_signal_after_the_commands_end_ends_the_rest_at_once():
    async def soon():
        await anyio.sleep(5)

    status, seconds = carry(Client(pause_s=1000), Process(), soon)
    assert (status, seconds) == (7, 5)


def test_a_signal_of_the_client_ends_a_session_whose_command_has_ended(world):
    class SlowClient(MemoryClient):
        async def send_stdout(self, data):
            await anyio.sleep_forever()

        async def next_control(self):
            await anyio.sleep(3)
            return Signal("INT")

    async def main():
        async with world.supervisor() as supervisor:
            session = supervisor.session(client=SlowClient())
            await settled()
            (vm,) = world.cloud.vms.values()
            vm.end_session("a1", 7)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(session.next_stop, session.client)
                with trio.fail_after(10):
                    await session.ended.wait()
                tasks.cancel_scope.cancel()
            assert session.outcome.status == 7

    in_virtual_time(main)


def test_what_a_command_wrote_is_waited_for_while_its_guest_is_out_of_reach():
    class Lost(Process):
        is_lost = True

        async def read_stdout(self, limit):
            if self.is_lost:
                await anyio.sleep(100)
            data = await super().read_stdout(limit)
            self.is_lost = False
            return data

    client = Client()
    status, seconds = carry(client, Lost(pieces=3))
    assert (status, client.taken) == (7, 3 * CHUNK)
    assert seconds > 100
