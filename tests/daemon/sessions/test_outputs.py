"""What a main command writes: who gets it, and what is carried after its end. In virtual time."""

import errno

import anyio
import pytest
import trio
from claude_vm_tests_memory import MemoryClient, in_virtual_time, settled

from claude_vm.supervisor.daemon.sessions.outputs import BACKLOG, CHUNK, STDOUT, TRICKLE_S, Outputs
from claude_vm.supervisor.wire.connected_client import Signal
from claude_vm.supervisor.wire.errors import OutputClosedError


class Slow:
    """A reader that takes a piece of output in `pause_s` seconds."""

    def __init__(self, pause_s=0.0):
        self.pause_s = pause_s
        self.taken = 0

    async def take(self, output, offset, data):
        await anyio.sleep(self.pause_s)
        self.taken += len(data)


class Failing:
    """A reader that fails at its first piece, after a while."""

    def __init__(self, error, after_s=3.0):
        self.error = error
        self.after_s = after_s
        self.calls = 0

    async def take(self, output, offset, data):
        self.calls += 1
        await anyio.sleep(self.after_s)
        raise self.error


class Process:
    """A main command that has ended. It, or what it left behind, writes a piece every `pause_s` seconds."""

    is_lost = False

    def __init__(self, *, pieces=None, pause_s=0.0, runs_s=0.0):
        self.pieces = pieces
        self.pause_s = pause_s
        self.runs_s = runs_s
        self.read = 0

    async def read_stdout(self, limit):
        await anyio.sleep(self.pause_s)
        if self.pieces is not None:
            self.pieces -= 1
            if self.pieces < 0:
                return b""
        self.read += limit
        return bytes(limit)

    def position(self, output):
        return self.read if output == STDOUT else 0

    async def read_stderr(self, limit):
        await anyio.sleep_forever()

    async def wait(self):
        await anyio.sleep(self.runs_s)
        return 7


def carry(process, *readers, hurry_s=None):
    """Return the exit status, and after how many seconds it came."""

    async def main():
        outputs = Outputs()
        for reader in readers:
            outputs.add(reader, counts=True)
        begun = trio.current_time()

        async def hurry():
            await anyio.sleep(hurry_s)
            outputs.hurry()

        async with anyio.create_task_group() as tasks:
            if hurry_s is not None:
                tasks.start_soon(hurry)
            status = await outputs.carry(process)
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

        async def take(self, output, offset, data):
            await super().take(output, offset, data)
            self.pieces.append((output, offset, data))

    class Both(Process):
        async def read_stderr(self, limit):
            return b""

        async def read_stdout(self, limit):
            self.pieces -= 1
            self.read += self.pieces >= 0
            return b"%d" % self.pieces if self.pieces >= 0 else b""

    quick, slow = Noting(0.0), Noting(2.0)
    status, seconds = carry(Both(pieces=4), quick, slow)
    assert quick.pieces == slow.pieces == [(STDOUT, 3 - n, b"%d" % n) for n in (3, 2, 1, 0)]
    assert (status, seconds) == (7, 8.0)


def test_what_nobody_reads_is_dropped():
    status, _ = carry(Process(pieces=1000, pause_s=0.1, runs_s=200.0))
    assert status == 7


@pytest.mark.parametrize(("runs_s", "status"), [(1000.0, 141), (0.0, 7)], ids=["runs", "ended"])
def test_an_output_that_its_reader_has_closed_ends_the_command_as_sigpipe_would(runs_s, status):
    assert carry(Process(runs_s=runs_s), Failing(OutputClosedError("closed"))) == (status, 3)


@pytest.mark.parametrize("error", [OutputClosedError("closed"), OSError(errno.ENOSPC, "full")], ids=repr)
def test_a_reader_that_fails_is_dropped_and_the_others_get_everything(error):
    failing, slow = Failing(error), Slow(pause_s=1.0)
    status, _ = carry(Process(pieces=20), failing, slow)
    assert (status, slow.taken, failing.calls) == (7, 20 * CHUNK, 1)


def test_the_command_ends_when_the_last_reader_that_counts_has_failed_whoever_else_reads():
    recorder = Slow()

    async def main():
        outputs = Outputs()
        outputs.add(recorder, counts=False)
        outputs.add(Failing(OutputClosedError("closed")), counts=True)
        outputs.add(Failing(OutputClosedError("closed"), after_s=5), counts=True)
        assert await outputs.carry(Process(runs_s=1000.0)) == 141

    in_virtual_time(main)
    assert recorder.taken == CHUNK


def test_without_anybody_who_counts_the_command_goes_on_when_a_recorder_fails():
    async def main():
        outputs = Outputs()
        outputs.add(Failing(OutputClosedError("closed")), counts=False)
        assert await outputs.carry(Process(pieces=100, pause_s=1.0, runs_s=50.0)) == 7

    in_virtual_time(main)


def test_readers_come_and_go_while_a_command_writes_and_know_where_they_are():
    class Noting(Slow):
        def __init__(self):
            super().__init__()
            self.offsets = []

        async def take(self, output, offset, data):
            self.offsets.append((output, offset))

    async def main():
        outputs = Outputs()
        first, second = Noting(), Noting()
        outputs.add(first, counts=True)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(outputs.carry, Process(pieces=4, pause_s=10.0, runs_s=100.0))
            await anyio.sleep(25)
            assert outputs.offsets == [2 * CHUNK, 0]
            outputs.add(second, counts=True)
            await anyio.sleep(10)
            outputs.remove(first)
        assert first.offsets == [(STDOUT, n * CHUNK) for n in (0, 1, 2)]
        assert second.offsets == [(STDOUT, n * CHUNK) for n in (2, 3)]

    in_virtual_time(main)


def test_when_the_last_reader_has_gone_the_command_goes_on_and_nothing_is_waited_for_at_its_end():
    async def main():
        outputs = Outputs()
        reader = Slow()
        outputs.add(reader, counts=True)
        async with anyio.create_task_group() as tasks:

            async def leave():
                await anyio.sleep(5.5)
                outputs.remove(reader)

            tasks.start_soon(leave)
            begun = trio.current_time()
            assert await outputs.carry(Process(pause_s=1.0, runs_s=20.0)) == 7
            assert trio.current_time() - begun == 20
        assert reader.taken == 5 * CHUNK

    in_virtual_time(main)


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
