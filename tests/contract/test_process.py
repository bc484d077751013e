"""Programs that end by themselves, and processes that must be found again."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import msgspec
import psutil
import pytest

from claude_vm.drivers.errors import DriverError, ToolMissingError
from claude_vm.drivers.process import (
    OUTPUT_LIMIT,
    ProcessIdentity,
    boot_id,
    find_marked,
    kill_group,
    run_tool,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


SLEEPER = "import sys, time; print('up', flush=True); time.sleep(600)"


async def gone(pid):
    """Wait for the end of what has been killed: the signal is delivered at once, dying takes a moment."""
    if (identity := ProcessIdentity.of(pid)) is not None:
        with anyio.move_on_after(10):
            await identity.wait()
    return ProcessIdentity.of(pid) is None


@pytest.fixture
def sleeper():
    """A process of ours that has started and goes on."""
    with subprocess.Popen([sys.executable, "-c", SLEEPER, "mark:abc:one"], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"up\n"
        yield process
        process.kill()


async def test_both_outputs_and_the_status_come_back():
    done = await run_tool(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout_s=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", b"err\n")


async def test_input_reaches_the_program_and_ends():
    data = bytes(range(256)) * 1000
    done = await run_tool(["cat"], timeout_s=30, input=data)
    assert done.stdout == data[-OUTPUT_LIMIT:]


async def test_without_input_stdin_is_empty():
    assert (await run_tool(["cat"], timeout_s=30)).stdout == b""


async def test_a_program_that_ignores_its_input_is_no_error():
    assert (await run_tool(["true"], timeout_s=30, input=b"x" * 1_000_000)).returncode == 0


async def test_output_is_bounded_and_its_end_is_kept():
    done = await run_tool(["sh", "-c", "yes 0123456789 | head -c 5000000; echo end"], timeout_s=60)
    assert len(done.stdout) == OUTPUT_LIMIT
    assert done.stdout.endswith(b"end\n")


async def test_lines_are_told_one_by_one_with_every_kind_of_end():
    lines = []
    await run_tool(["printf", r"one\ntwo\rthree\r\n\nf\377ur"], timeout_s=30, on_line=lines.append)
    assert lines == ["one", "two", "three", "f�ur"]


async def test_a_line_without_end_is_cut():
    lines = []
    await run_tool(["sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' x"], timeout_s=30, on_line=lines.append)
    assert {len(line) for line in lines} == {4096}


async def test_failure_carries_the_last_words():
    with pytest.raises(DriverError, match="exit status 7") as caught:
        await run_tool(["sh", "-c", "seq 100; echo 'no such disk' >&2; exit 7"], timeout_s=30)
    assert caught.value.detail == "no such disk"


async def test_failure_without_stderr_has_the_end_of_stdout():
    with pytest.raises(DriverError) as caught:
        await run_tool(["sh", "-c", "seq 100; exit 1"], timeout_s=30)
    assert caught.value.detail.splitlines() == [str(number) for number in range(81, 101)]


async def test_death_by_a_signal_is_named():
    with pytest.raises(DriverError, match="died of SIGTERM"):
        await run_tool(["sh", "-c", "kill -TERM $$"], timeout_s=30)


async def test_a_missing_program_says_what_to_install():
    with pytest.raises(ToolMissingError, match="no-such-tool is not installed") as caught:
        await run_tool(["no-such-tool"], timeout_s=30, missing_hint="apt-get install it")
    assert caught.value.hint == "apt-get install it"


async def test_a_missing_program_is_missing_whatever_the_path_has(tmp_path):
    (tmp_path / "locked").mkdir(mode=0)
    environ = {"PATH": f"{tmp_path}/locked:/usr/bin:/bin"}
    with pytest.raises(ToolMissingError):
        await run_tool(["no-such-tool"], timeout_s=30, env=environ)


async def test_a_missing_directory_is_not_taken_for_a_missing_program(tmp_path):
    with pytest.raises(DriverError, match=r"directory .* does not exist") as caught:
        await run_tool(["true"], timeout_s=30, cwd=tmp_path / "gone")
    assert not isinstance(caught.value, ToolMissingError)


async def test_a_file_that_is_no_program_is_an_error_of_ours(tmp_path):
    (tmp_path / "data").write_text("x")
    with pytest.raises(DriverError, match="can't be started"):
        await run_tool([str(tmp_path / "data")], timeout_s=30)


async def test_the_environment_is_replaced_as_a_whole():
    done = await run_tool(["/usr/bin/env"], timeout_s=30, env={"ONLY": "this"})
    assert done.stdout == b"ONLY=this\n"


async def test_only_the_named_descriptors_are_passed_on(tmp_path):
    with (tmp_path / "wanted").open("wb") as wanted, (tmp_path / "other").open("wb") as other:
        os.set_inheritable(other.fileno(), True)
        script = f"echo hello >&{wanted.fileno()}; ls /proc/self/fd 2>/dev/null || true"
        done = await run_tool(["bash", "-c", script], timeout_s=30, pass_fds=[wanted.fileno()])
        assert str(other.fileno()) not in done.stdout.decode().split()
    assert (tmp_path / "wanted").read_bytes() == b"hello\n"


async def test_timeout_kills_the_whole_group(tmp_path):
    script = f"sh -c 'echo $$ >{tmp_path}/child; exec sleep 600' & wait"
    with pytest.raises(DriverError, match=r"did not end within 0\.5 s"):
        await run_tool(["sh", "-c", script], timeout_s=0.5)
    assert await gone(int((tmp_path / "child").read_text()))


async def test_cancellation_kills_the_whole_group():
    pids = []
    async with anyio.create_task_group() as tasks:

        def started(line):
            pids.append(int(line))
            tasks.cancel_scope.cancel()

        script = "trap '' TERM INT; sh -c 'trap \"\" TERM; echo $$; sleep 600' & wait"

        async def run():
            await run_tool(["sh", "-c", script], timeout_s=60, on_line=started)

        tasks.start_soon(run)
    assert len(pids) == 1
    assert await gone(pids[0])


async def test_a_background_child_does_not_hold_the_call_and_does_not_survive_it():
    with anyio.fail_after(20):
        done = await run_tool(["sh", "-c", "sleep 600 & echo $!"], timeout_s=60)
    assert await gone(int(done.stdout))


async def test_a_child_in_a_session_of_its_own_does_not_hold_the_call():
    with anyio.fail_after(20):
        done = await run_tool([sys.executable, "-c", DAEMON], timeout_s=60)
    pid = int(done.stdout)
    assert ProcessIdentity.of(pid)
    os.kill(pid, signal.SIGKILL)


DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    print(os.getpid(), flush=True)
    time.sleep(600)
else:
    time.sleep(0.5)
"""


async def test_the_program_can_not_reach_our_terminal():
    done = await run_tool(
        [sys.executable, "-c", "import os; print(os.getsid(0) == os.getpid())"], timeout_s=30
    )
    assert done.stdout == b"True\n"


def test_killing_a_group_that_is_gone_does_nothing(sleeper):
    sleeper.kill()
    sleeper.wait()
    kill_group(sleeper.pid)


async def test_identity_survives_serialisation_and_sees_the_end(sleeper):
    identity = ProcessIdentity.of(sleeper.pid)
    assert msgspec.json.decode(msgspec.json.encode(identity), type=ProcessIdentity) == identity
    assert identity.is_alive()
    assert identity.kill()
    with anyio.fail_after(20):
        await identity.wait()
    assert not identity.is_alive()
    sleeper.wait()
    assert not identity.is_alive()
    assert not identity.kill()


def test_a_zombie_is_not_alive(sleeper):
    identity = ProcessIdentity.of(sleeper.pid)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert psutil.Process(sleeper.pid).status() == psutil.STATUS_ZOMBIE
    assert not identity.is_alive()
    assert ProcessIdentity.of(sleeper.pid) is None


@pytest.mark.parametrize("change", [{"started": 1.0}, {"boot": "another"}])
async def test_another_process_with_the_same_pid_is_neither_alive_nor_killed(sleeper, change):
    other = msgspec.structs.replace(ProcessIdentity.of(sleeper.pid), **change)
    assert not other.is_alive()
    assert not other.kill()
    with anyio.fail_after(5):
        await other.wait()
    assert sleeper.poll() is None


@pytest.mark.parametrize("without", ["pidfd_open"])
async def test_without_pidfds_the_same_holds(sleeper, monkeypatch, without):
    monkeypatch.delattr(os, without, raising=False)
    identity = ProcessIdentity.of(sleeper.pid)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(identity.wait)
        assert identity.kill(signal.SIGTERM)
    assert not identity.is_alive()


def test_a_process_name_with_brackets_does_not_confuse_the_identity(tmp_path):
    program = tmp_path / ") S 1 2 (x"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "600"]) as process:
        assert ProcessIdentity.of(process.pid).started > 1000
        process.kill()


def test_boot_id_is_stable_within_a_boot():
    assert boot_id() == boot_id() != ""


def test_marked_processes_are_found_by_whole_words(sleeper):
    assert [found.pid for found in find_marked("mark:abc:one")] == [sleeper.pid]
    assert find_marked("mark:abc:one")[0].argv[-1] == "mark:abc:one"
    assert find_marked("mark:abc:on") == []
    assert find_marked("ark:abc:one") == []
    assert find_marked("mark.abc.one") == []


def test_a_mark_is_found_within_an_argument():
    argv = [sys.executable, "-c", SLEEPER, "guest=mark:x:y:i-0123456789,debug-threads=on"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert [found.pid for found in find_marked("mark:x:y")] == [process.pid]
        process.kill()


def test_zombies_and_ourselves_are_not_found(sleeper):
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert find_marked("mark:abc:one") == []
    own = Path(psutil.Process().cmdline()[-1]).name
    assert os.getpid() not in [found.pid for found in find_marked(own)]
