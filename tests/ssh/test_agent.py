"""Agent forwarding: a fake agent answers, the guest's processes reach it through sshd's socket."""

import contextlib
import sys

import anyio
import pytest

from claude_vm.supervisor.ssh.agent import MAX_CONVERSATIONS
from claude_vm.supervisor.ssh.errors import ChannelRefusedError, LinkLostError
from claude_vm.supervisor.ssh.launch import Mode
from claude_vm.supervisor.ssh.process import Pty
from claude_vm.supervisor.ssh.shells import Kind, prime

pytestmark = pytest.mark.anyio

ASK = (
    "import os, socket, sys\n"
    "agent = socket.socket(socket.AF_UNIX)\n"
    "try:\n"
    "    agent.connect(os.environ['SSH_AUTH_SOCK'])\n"
    "    agent.sendall(b'question ' + sys.argv[1].encode())\n"
    "    answer = agent.recv(100)\n"
    "except OSError:\n"
    "    answer = b''\n"
    "print(answer.decode() or 'closed')\n"
)


class EchoAgent:
    """Answers each message with the same, in capitals; counts what is open."""

    def __init__(self):
        self.open = 0
        self.opened = 0
        self.fail = None

    async def connect(self):
        if self.fail is not None:
            raise self.fail
        self.open += 1
        self.opened += 1
        return EchoStream(self)


class EchoStream:
    def __init__(self, agent):
        self.agent = agent
        self.to, self.answers = anyio.create_memory_object_stream(10)
        self.closed = False

    async def send(self, data):
        await self.to.send(data.upper())

    async def receive(self):
        try:
            return await self.answers.receive()
        except anyio.EndOfStream:
            return b""

    async def aclose(self):
        if not self.closed:
            self.closed = True
            self.agent.open -= 1
            self.to.close()
            self.answers.close()


@pytest.fixture
def socket_path(server, tmp_path_factory):
    """Where the guest's sshd listens for the session's agent; what the guest's helper makes is there."""
    if hasattr(server, "guest"):
        folder = server.run / "agent"
        folder.mkdir(exist_ok=True)
    else:
        folder = tmp_path_factory.mktemp("agent")
    return str(folder / "s")


@pytest.fixture
def forwarded(link, session, socket_path):
    """Run a program whose session reaches an agent; give its process and what withdraws the agent."""

    @contextlib.asynccontextmanager
    async def start(open_agent, program, *words, pty=None):
        listener = await link.listen_for_agent(socket_path, open_agent)
        process = await session(
            Mode.EXEC,
            [sys.executable, "-c", program, *words],
            env={"SSH_AUTH_SOCK": socket_path},
            pty=pty,
        )
        try:
            yield process, listener
        finally:
            listener.close()
            await process.aclose()

    return start


async def ask_late(link, path):
    """Ask from another process of the guest; the answer is a line."""
    quoted = ASK.replace("'", "'\\''")
    return (await link.run(f"SSH_AUTH_SOCK={path} {sys.executable} -c '{quoted}' late")).stdout


async def output(process):
    data = b""
    while part := await process.read_stdout(65536):
        data += part
    return data


async def test_without_an_agent_there_is_no_variable(session):
    process = await session(Mode.EXEC, ["sh", "-c", "echo ${SSH_AUTH_SOCK-none}"])
    assert await output(process) == b"none\n"


@pytest.mark.parametrize("pty", [None, Pty("xterm", 24, 80)], ids=["pipes", "terminal"])
async def test_the_guest_reaches_the_agent(forwarded, pty):
    agent = EchoAgent()
    async with forwarded(agent.connect, ASK + ASK, "one", pty=pty) as (process, _):
        assert (await output(process)).split() == [b"QUESTION", b"ONE"] * 2
        assert await process.wait() == 0
    await all_closed(agent)
    assert agent.opened == 2


async def all_closed(agent):
    with anyio.fail_after(10):
        while agent.open:  # noqa: ASYNC110 - the end of the last conversation is still on its way
            await anyio.sleep(0.01)


async def test_an_agent_is_there_for_a_shell_that_was_started_before_it(link, put, socket_path):
    agent = EchoAgent()
    shells = await prime(link, [Kind.PIPES], term="xterm")
    listener = await link.listen_for_agent(socket_path, agent.connect)
    words = [sys.executable, "-c", ASK, "one"]
    process = await shells.start(put(Mode.EXEC, words, env={"SSH_AUTH_SOCK": socket_path}), pty=None)
    assert await output(process) == b"QUESTION ONE\n"
    listener.close()
    await process.aclose()


async def test_a_socket_that_a_background_process_keeps_is_dead_after_the_end(link, forwarded, socket_path):
    agent = EchoAgent()
    async with forwarded(agent.connect, "") as (process, _):
        assert await process.wait() == 0
    assert b"QUESTION" not in await ask_late(link, socket_path)
    assert agent.opened == 0


async def test_a_conversation_that_is_under_way_is_cut_at_the_end(forwarded):
    agent = EchoAgent()
    hold = (
        "import os, socket; a = socket.socket(socket.AF_UNIX); a.connect(os.environ['SSH_AUTH_SOCK'])\n"
        "a.sendall(b'x'); print(a.recv(9), flush=True)\n"
        "try: print(a.recv(9))\n"
        "except ConnectionResetError: print(b'')"
    )
    async with forwarded(agent.connect, hold) as (process, listener):
        assert await process.read_stdout(100) == b"b'X'\n"
        listener.close()
        listener.close()
        assert await output(process) == b"b''\n"
    assert (agent.opened, agent.open) == (1, 0)


async def test_one_agents_end_is_not_the_others(link, socket_path):
    first, second = EchoAgent(), EchoAgent()
    listeners = [
        await link.listen_for_agent(socket_path + name, agent.connect)
        for name, agent in (("1", first), ("2", second))
    ]
    listeners[0].close()
    assert b"QUESTION" not in await ask_late(link, socket_path + "1")
    assert await ask_late(link, socket_path + "2") == b"QUESTION LATE\n"
    listeners[1].close()
    await all_closed(second)
    assert (first.opened, second.opened) == (0, 1)


@pytest.mark.parametrize("failure", [ConnectionRefusedError("no agent"), RuntimeError("client is gone")])
async def test_an_agent_that_fails_is_an_end_for_the_guest_and_nothing_else(link, forwarded, failure):
    agent = EchoAgent()
    agent.fail = failure
    async with forwarded(agent.connect, ASK, "one") as (process, _):
        assert await output(process) == b"closed\n"
        assert (await link.run("echo link lives")).stdout == b"link lives\n"


async def test_a_guest_that_opens_many_conversations_is_bounded(forwarded):
    agent = EchoAgent()
    many = (
        "import os, socket; got = []\n"
        "for n in range(60):\n"
        "  a = socket.socket(socket.AF_UNIX); a.connect(os.environ['SSH_AUTH_SOCK'])\n"
        "  try: a.sendall(b'x'); got.append((a, a.recv(9)))\n"
        "  except OSError: got.append((a, b''))\n"
        "print(sum(1 for a, data in got if data))"
    )
    async with forwarded(agent.connect, many) as (process, _):
        assert await output(process) == f"{MAX_CONVERSATIONS}\n".encode()
    assert agent.opened == MAX_CONVERSATIONS


async def test_a_path_where_the_guest_cannot_listen_is_an_error(link, socket_path):
    with pytest.raises(ChannelRefusedError):
        await link.listen_for_agent(socket_path + "/no/such/folder/" + "n" * 120, EchoAgent().connect)
    assert (await link.run("echo link lives")).stdout == b"link lives\n"


async def test_no_agent_over_a_connection_that_is_lost(link, server, socket_path):
    server.hang_up()
    await link.wait_closed()
    with pytest.raises(LinkLostError):
        await link.listen_for_agent(socket_path, EchoAgent().connect)


async def test_a_real_agent_lists_its_key_in_the_guest(forwarded, real_agent):
    program = "import os; os.execvp('ssh-add', ['ssh-add', '-l'])"
    async with forwarded(real_agent, program) as (process, _):
        assert b"a key of the test" in await output(process)
        assert await process.wait() == 0
