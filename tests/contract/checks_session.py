"""Checks of the contract: what a session does in a guest."""

import os
import shlex

import anyio
import pytest
from claude_vm_tests_case import check, output, printed, session

from claude_vm.supervisor.ssh.errors import LinkLostError
from claude_vm.supervisor.ssh.launch import LaunchMode
from claude_vm.supervisor.ssh.process import Pty


@check
async def the_launcher_runs_words_byte_for_byte(case):
    words = ["", "-rf", "a b", "'\"", "$(id)", "new\nline", os.fsdecode(bytes(range(1, 256))), ""]
    env = {"HOSTILE": words[-2], "EMPTY": "", "LONG": "x" * 70_000}
    script = (
        "import os, sys; print(ascii([[os.fsencode(w) for w in sys.argv[1:]], "
        "[os.environb[n.encode()] for n in ('HOSTILE', 'EMPTY', 'LONG')], os.getcwd()]))"
    )
    async with (
        case.connected() as (instance_id, _, link),
        session(
            case, instance_id, link, LaunchMode.EXEC, ["python3", "-c", script, *words], env=env, cwd="/usr"
        ) as process,
    ):
        data = [[os.fsencode(w) for w in words], [os.fsencode(v) for v in env.values()], "/usr"]
        assert (await output(process)).decode().strip() == ascii(data)
        assert await process.wait() == 0


@check
async def the_launcher_passes_on_statuses_signals_and_streams(case):
    async with case.connected() as (instance_id, _, link):

        async def status_of(mode, *argv, **more):
            async with session(case, instance_id, link, mode, argv, **more) as process:
                process.write_eof()
                await output(process)
                return await process.wait()

        assert await status_of(LaunchMode.EXEC, "sh", "-c", "exit 37") == 37
        assert await status_of(LaunchMode.EXEC, "sh", "-c", "kill -TERM $$") == 143
        assert await status_of(LaunchMode.EXEC, "no-such-program-here") == 127
        assert await status_of(LaunchMode.EXEC, "/etc") == 126
        assert await status_of(LaunchMode.EVAL, "f() { return 9; }; f") == 9
        assert await status_of(LaunchMode.EXEC, "true", cwd="/no/such/folder") == 125
        async with session(case, instance_id, link, LaunchMode.EXEC, ["cat"]) as process:
            await process.write(bytes(range(256)))
            process.write_eof()
            assert await output(process) == bytes(range(256))
            assert await process.wait() == 0
        async with session(
            case, instance_id, link, LaunchMode.EXEC, ["sh", "-c", "echo ready; exec sleep 1000"]
        ) as process:
            assert await process.read_stdout(100) == b"ready\n"
            process.send_signal("INT")
            assert await process.wait() == 130


@check
async def a_terminal_has_its_size_from_the_start(case):
    async with (
        case.connected() as (instance_id, _, link),
        session(
            case,
            instance_id,
            link,
            LaunchMode.EVAL,
            ["stty size; echo $TERM; tty -s"],
            pty=Pty("xterm-256color", 33, 99),
        ) as process,
    ):
        assert await output(process) == b"33 99\r\nxterm-256color\r\n"
        assert await process.wait() == 0


@check
async def a_session_without_words_is_a_shell_in_its_directory(case):
    async with (
        case.connected() as (instance_id, _, link),
        session(case, instance_id, link, LaunchMode.SHELL, cwd="/usr", pty=Pty("dumb", 24, 80)) as process,
    ):
        await process.write(b"case $- in *i*) echo inter''active; esac; pwd; exit 5\n")
        text = await output(process)
        assert b"interactive\r\n/usr\r\n" in text, text
        assert await process.wait() == 5


class EchoAgent:
    """One connection to an agent that answers with what it got."""

    def __init__(self):
        self.to, self.back = anyio.create_memory_object_stream(10)

    async def send(self, data):
        await self.to.send(data)

    async def receive(self):
        try:
            return await self.back.receive()
        except anyio.EndOfStream:
            return b""

    async def aclose(self):
        self.to.close()
        self.back.close()


@check
async def an_agent_is_there_for_its_session_only(case):
    async def open_agent():
        return EchoAgent()

    ask = (
        "import os, socket\n"
        "agent = socket.socket(socket.AF_UNIX)\n"
        "try:\n"
        "    agent.connect(os.environ['SSH_AUTH_SOCK'])\n"
        "    agent.sendall(b'\\0\\0\\0\\6\\x0dasked')\n"
        "    print(agent.recv(10)[5:].decode())\n"
        "except (KeyError, OSError) as error: print(type(error).__name__)\n"
    )
    async with case.connected() as (instance_id, _, link):
        async with session(case, instance_id, link, LaunchMode.EXEC, ["python3", "-c", ask]) as process:
            assert await output(process) == b"KeyError\n"
        with_path = ask + "print(os.environ['SSH_AUTH_SOCK'])\n"
        async with session(
            case, instance_id, link, LaunchMode.EXEC, ["python3", "-c", with_path], agent=open_agent
        ) as process:
            answer, path = (await output(process)).decode().split()
            assert answer == "asked"
            assert await process.wait() == 0
        late = f"SSH_AUTH_SOCK={shlex.quote(path)} python3 -c {shlex.quote(ask)}"
        assert b"asked" not in await printed(case, instance_id, link, late)


@check
async def streams_are_exact_and_wait_for_their_reader(case):
    total = 8_000_000
    async with case.connected() as (instance_id, _, link):
        words = ["head", "-c", str(total), "/dev/zero"]
        async with session(case, instance_id, link, LaunchMode.EXEC, words) as process:
            count = 0
            while data := await process.read_stdout(65536):
                count += len(data)
            assert count == total
        async with session(case, instance_id, link, LaunchMode.EXEC, ["wc", "-c"]) as process:
            for _ in range(total // 50_000):
                await process.write(bytes(50_000))
            process.write_eof()
            assert int(await output(process)) == total


@check
async def the_end_of_a_vm_ends_its_processes_with_an_error(case):
    async with (
        case.connected() as (instance_id, _, link),
        session(case, instance_id, link, LaunchMode.EXEC, ["sh", "-c", "echo ready; sleep 1000"]) as process,
    ):
        assert await process.read_stdout(100)
        await case.kill(case.driver, instance_id)
        with anyio.fail_after(case.patience_s), pytest.raises(LinkLostError):
            await process.wait()
