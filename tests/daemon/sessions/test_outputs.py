"""What a main command writes: who gets it, and what is carried after its end. In virtual time."""

import anyio
import pytest
import trio
from claude_vm_tests_memory import MemoryClient, in_virtual_time, settled

from claude_vm.supervisor.daemon.sessions.outputs import BACKLOG, CHUNK, STDERR, STDOUT, TRICKLE_S, Outputs
from claude_vm.supervisor.wire.server import OutputClosedError, Signal


class Slow:
    """A reader that takes a piece of output in `pause_s` seconds."""

    def __init__(self, pause_s=0.0):
        self.pause_s = pause_s
        self.taken = 0

    async def take(self, output, data):
        await anyio.sleep(self.pause_s)
        self.taken += len(data)


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

    async def wait(self):
        await anyio.sleep(self.runs_s)
        return 7


def carry(process, *readers, hurry_s=None):
    """Return the exit status, and after how many seconds it came."""

    async def main():
        outputs = Outputs(process, readers)
        begun = trio.current_time()

        async def hurry():
            await anyio.sleep(hurry_s)
            outputs.hurry()

        async with anyio.create_task_group() as tasks:
            if hurry_s is not None:
                tasks.start_soon(hurry)
            status = await outputs.carry()
            tasks.cancel_scope.cancel()
        return status, trio.current_time() - begun

    return in_virtual_time(main)


@pytest.mark.parametrize("pause_s", [0.0, 0.001, 0.1, 0.4])
def test_a_writer_that_is_left_behind_does_not_hold_the_exit_status_back(pause_s):
    status, seconds = carry(Process(pause_s=pause_s), Slow())
    assert status == 7
    assert seconds < TRICKLE_S + 1.5


def test_a_writer_that_never_pauses_is_cut_off_before_much_has_come():
    reader = Slow()
    status, seconds = carry(Process(), reader)
    assert (status, reader.taken) == (7, BACKLOG)
    assert seconds < 1.5


def test_a_slow_reader_gets_all_that_the_command_wrote():
    reader = Slow(pause_s=20.0)
    status, _ = carry(Process(pieces=20), reader)
    assert (status, reader.taken) == (7, 20 * CHUNK)


def test_what_comes_before_the_commands_end_has_no_limit():
    reader = Slow()
    status, seconds = carry(Process(pieces=1000, pause_s=0.1, runs_s=200.0), reader)
    assert (status, reader.taken) == (7, 1000 * CHUNK)
    assert seconds >= 200


def test_a_hurry_after_the_commands_end_ends_the_rest_at_once_and_one_before_changes_nothing():
    assert carry(Process(), Slow(pause_s=1000), hurry_s=5) == (7, 5)
    status, seconds = carry(Process(pieces=9, pause_s=1, runs_s=9), Slow(), hurry_s=5)
    assert (status, seconds >= 9) == (7, True)


def test_every_reader_gets_every_piece_in_order_and_the_slowest_sets_the_pace():
    class Noting(Slow):
        def __init__(self, pause_s):
            super().__init__(pause_s)
            self.pieces = []

        async def take(self, output, data):
            await super().take(output, data)
            self.pieces.append((output, data))

    class Both(Process):
        async def read_stderr(self, limit):
            return b""

        async def read_stdout(self, limit):
            self.pieces -= 1
            return b"%d" % self.pieces if self.pieces >= 0 else b""

    quick, slow = Noting(0.0), Noting(2.0)
    status, seconds = carry(Both(pieces=4), quick, slow)
    assert quick.pieces == slow.pieces == [(STDOUT, b"%d" % n) for n in (3, 2, 1, 0)]
    assert (status, seconds) == (7, 8.0)


def test_what_nobody_reads_is_dropped():
    status, _ = carry(Process(pieces=1000, pause_s=0.1, runs_s=200.0))
    assert status == 7


@pytest.mark.parametrize(("runs_s", "status"), [(1000.0, 141), (0.0, 7)], ids=["runs", "ended"])
def test_an_output_that_its_reader_has_closed_ends_the_command_as_sigpipe_would(runs_s, status):
    class Closing:
        async def take(self, output, data):
            assert output != STDERR
            await anyio.sleep(3)
            raise OutputClosedError("closed")

    assert carry(Process(runs_s=runs_s), Closing()) == (status, 3)


def test_a_signal_of_the_client_ends_a_session_whose_command_has_ended(world):
    class SlowClient(MemoryClient):
        async def send_stdout(self, data):
            await anyio.sleep_forever()

        async def next_control(self):
            await anyio.sleep(3)
            return Signal("INT")

    async def main():
        async with world.supervisor() as supervisor:
            session = await supervisor.session(client=SlowClient())
            await settled()
            (vm,) = world.cloud.vms.values()
            vm.end_session("a1", 7)
            with trio.fail_after(10):
                await session.ended.wait()
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

    reader = Slow()
    status, seconds = carry(Lost(pieces=3), reader)
    assert (status, reader.taken) == (7, 3 * CHUNK)
    assert seconds > 100
