"""A session's process over connections that break: nothing lost, nothing doubled. By the real holder."""

import hashlib
import os
import random
import sys

import anyio
import pytest
from claude_vm_tests_reading import until, whole

from claude_vm.drivers.guest.holder import shell
from claude_vm.supervisor.ssh.errors import LinkLostError, SessionUnknownError
from claude_vm.supervisor.ssh.launch import LaunchMode
from claude_vm.supervisor.ssh.link import connect
from claude_vm.supervisor.ssh.process import Pty
from claude_vm.supervisor.ssh.shells import HeldProcess, ShellKind, prime

pytestmark = pytest.mark.anyio

TERMINAL = Pty("xterm-256color", 30, 100)
everywhere = pytest.mark.parametrize("pty", [None, TERMINAL], ids=["pipes", "terminal"])


class Held:
    """A session whose connection can be broken and made again."""

    def __init__(self, server, put):
        self.server = server
        self.put = put
        self.links = []
        self.process = None

    async def start(self, mode, words, *, pty=None, env=None):
        await self.connect()
        shells = await prime(
            self.links[-1], [ShellKind.PIPES if pty is None else ShellKind.PTY], term="xterm-256color"
        )
        name = self.put(mode, words, env=env)
        self.process = await shells.start(name, pty=pty)
        self.process.keep(name)
        return self.process

    async def connect(self):
        self.links.append(await connect(self.server.access(), timeout_s=20))

    async def cut(self):
        self.links[-1].cut()
        with anyio.fail_after(20):
            await self.process.until_lost()

    async def attach(self):
        await self.connect()
        await self.process.attach(self.links[-1])

    async def again(self):
        await self.cut()
        await self.attach()


@pytest.fixture
async def held(server, put):
    made = Held(server, put)
    yield made
    if made.process is not None:
        await made.process.aclose()
    for link in made.links:
        await link.aclose()


async def break_often(held, scope_over, seed):
    chance = random.Random(seed)
    for _ in range(6):
        await anyio.sleep(chance.random() * 0.3)
        if scope_over():
            return
        await held.again()


@everywhere
async def test_each_line_comes_once_and_in_order_whenever_the_connection_breaks(held, pty):
    count = 150_000
    setting = "stty -opost 2>/dev/null; " if pty else ""
    process = await held.start(LaunchMode.EXEC, ["sh", "-c", f"{setting}seq {count}; exit 9"], pty=pty)
    received = hashlib.sha256()
    ended = []

    async def read():
        while data := await process.read_stdout(4096):
            received.update(data)
            await anyio.sleep(0.003)  # so that much has come that is not read yet
        ended.append(True)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await break_often(held, lambda: ended, 1)
    assert await process.wait() == 9
    assert (
        received.digest() == hashlib.sha256("".join(f"{n}\n" for n in range(1, count + 1)).encode()).digest()
    )
    assert process.gap == 0


@pytest.mark.parametrize("size", [7, 1000, 65536])
async def test_input_arrives_once_and_in_order_whenever_the_connection_breaks(held, size):
    process = await held.start(LaunchMode.EXEC, ["sha256sum"])
    sent = hashlib.sha256()
    ended = []

    async def write():
        for _ in range(4000 if size < 1000 else 6_000_000 // size):
            block = os.urandom(size)
            sent.update(block)
            await process.write(block)
        process.write_eof()
        ended.append(True)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            await break_often(held, lambda: ended, size)
        assert (await whole(process.read_stdout)).split()[0].decode() == sent.hexdigest()
        assert await process.wait() == 0


COUNT = (
    "import signal, sys\n"
    "seen = 0\n"
    "def count(*_):\n"
    "    global seen; seen += 1\n"
    "signal.signal(signal.SIGUSR1, count)\n"
    "print('ready', flush=True)\n"
    "for line in iter(sys.stdin.readline, ''): print(line.strip(), seen, flush=True)\n"
)


async def test_what_is_sent_while_there_is_no_connection_arrives_once_and_in_its_order(held):
    process = await held.start(LaunchMode.EXEC, [sys.executable, "-c", COUNT])
    await until(process, b"ready\n")
    for n in range(1, 4):
        await held.cut()
        process.send_signal("USR1")
        await process.write(b"line %d\n" % n)
        await held.attach()
        assert await until(process, b"line %d %d\n" % (n, n))
    await held.again()
    await held.again()
    await process.write(b"end\n")
    process.write_eof()
    assert await whole(process.read_stdout) == b"end 3\n"
    assert await process.wait() == 0


async def test_a_size_that_changed_meanwhile_is_the_terminals(held):
    process = await held.start(LaunchMode.SHELL, [], pty=TERMINAL, env={"PS1": "> "})
    await until(process, b"> ")
    await held.cut()
    process.resize(41, 121)
    process.resize(44, 144)
    await held.attach()
    await process.write(b"stty size; exit 6\r")
    await until(process, b"44 144")
    assert await process.wait() == 6


@everywhere
async def test_an_end_while_there_is_no_connection_is_told_with_all_that_was_written(held, server, pty):
    mark = server.scratch / "go"
    line = f"while [ ! -e {mark} ]; do sleep 0.05; done; echo last words; exit 5"
    process = await held.start(LaunchMode.EXEC, ["sh", "-c", line], pty=pty)
    await held.cut()
    mark.touch()
    await anyio.sleep(0.5)
    await held.attach()
    assert (await whole(process.read_stdout)).strip() == b"last words"
    assert await process.wait() == 5


async def test_a_session_that_is_not_there_is_told_as_such(held):
    await held.connect()
    process = HeldProcess.found("abcdef")
    with pytest.raises(SessionUnknownError):
        await process.attach(held.links[-1])


async def test_a_connection_that_breaks_while_it_attaches_can_be_tried_again(held):
    process = await held.start(LaunchMode.EXEC, ["sh", "-c", "echo one; read x; echo two"])
    await until(process, b"one\n")
    await held.cut()
    await held.connect()
    held.links[-1].cut()
    with pytest.raises(LinkLostError):
        await process.attach(held.links[-1])
    assert process.is_lost
    await held.attach()
    await process.write(b"x\n")
    assert await whole(process.read_stdout) == b"two\n"


async def test_another_connection_may_take_the_place_of_one_that_is_only_silent(held):
    process = await held.start(LaunchMode.EXEC, ["cat"])
    await process.write(b"one ")
    await until(process, b"one ")
    await held.attach()  # the former one is as it was
    await process.write(b"two")
    process.write_eof()
    assert await whole(process.read_stdout) == b"two"
    assert await process.wait() == 0


# The other holder is another process, whose patience can't be shortened.
@pytest.mark.parametrize("server", ["sim"], indirect=True)
async def test_a_terminal_that_nobody_came_back_to_in_time_says_how_much_is_lost(held, monkeypatch):
    monkeypatch.setattr(shell, "ALONE_S", 0.2)
    total = 3_000_000
    program = f"stty -echo -opost; echo ready; read x; head -c {total} /dev/zero; echo end; read y"
    process = await held.start(LaunchMode.EXEC, ["sh", "-c", program], pty=TERMINAL)
    await until(process, b"ready\n")
    await process.write(b"\r")
    first = len(await process.read_stdout(1))
    await held.cut()
    await anyio.sleep(2)
    await held.attach()
    with anyio.fail_after(20):
        text = await until(process, b"end\n")
    assert process.gap > 1_000_000
    assert first + len(text) - len(b"end\n") + process.gap == total


async def test_a_terminal_waits_a_while_for_who_comes_back(held):
    total = 3_000_000
    program = f"stty -echo -opost; echo ready; read x; head -c {total} /dev/zero; exit 2"
    process = await held.start(LaunchMode.EXEC, ["sh", "-c", program], pty=TERMINAL)
    await until(process, b"ready\n")
    await held.cut()
    await process.write(b"\n")
    await held.attach()
    await held.cut()
    await anyio.sleep(1.5)
    await held.attach()
    assert len(await whole(process.read_stdout)) == total
    assert (await process.wait(), process.gap) == (2, 0)
