"""Agent forwarding: a fake agent answers, the guest's processes reach it through sshd's socket."""

import sys

import anyio
import pytest

from claude_vm.supervisor.ssh.agent import MAX_CONVERSATIONS

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
ASKING = f'{sys.executable} -c "$ASK"'


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


def ask(word):
    return f"ASK='{ASK.replace(chr(39), chr(39) + chr(92) + chr(39) + chr(39))}'; {ASKING} {word}"


async def output(process):
    data = b""
    while part := await process.read_stdout(65536):
        data += part
    return data


async def test_without_an_agent_there_is_no_variable(link):
    assert (await link.run("echo ${SSH_AUTH_SOCK-none}")).stdout == b"none\n"


async def test_the_guest_reaches_the_agent(link):
    agent = EchoAgent()
    process = await link.open_process(ask("one") + "; " + ask("two"), agent=agent.connect)
    assert await output(process) == b"QUESTION ONE\nQUESTION TWO\n"
    assert await process.wait() == 0
    with anyio.fail_after(10):
        while agent.open:  # noqa: ASYNC110 - the end of the last conversation is still on its way
            await anyio.sleep(0.01)
    assert agent.opened == 2


async def test_a_socket_that_a_background_process_keeps_is_dead_after_the_end(link):
    agent = EchoAgent()
    process = await link.open_process("echo $SSH_AUTH_SOCK", agent=agent.connect)
    path = (await output(process)).decode().strip()
    assert await process.wait() == 0
    done = await link.run(f"export SSH_AUTH_SOCK={path}; " + ask("late"))
    assert b"QUESTION" not in done.stdout
    assert agent.opened == 0


async def test_a_conversation_that_is_under_way_is_cut_at_the_end(link):
    agent = EchoAgent()
    hold = (
        "import os, socket; a = socket.socket(socket.AF_UNIX); a.connect(os.environ['SSH_AUTH_SOCK']); "
        "a.sendall(b'x'); a.recv(9); os.fork() and os._exit(7); print(a.recv(9), flush=True)"
    )
    process = await link.open_process(f'{sys.executable} -c "{hold}"', agent=agent.connect)
    assert await process.wait() == 7
    assert await output(process) == b"b''\n"
    assert (agent.opened, agent.open) == (1, 0)


async def test_closing_the_process_withdraws_the_agent(link):
    agent = EchoAgent()
    process = await link.open_process("echo $SSH_AUTH_SOCK; sleep 1000", agent=agent.connect)
    path = (await process.read_stdout(1000)).decode().strip()
    await process.aclose()
    done = await link.run(f"export SSH_AUTH_SOCK={path}; " + ask("late"))
    assert b"QUESTION" not in done.stdout
    assert agent.opened == 0


@pytest.mark.parametrize("failure", [ConnectionRefusedError("no agent"), RuntimeError("client is gone")])
async def test_an_agent_that_fails_is_an_end_for_the_guest_and_nothing_else(link, failure):
    agent = EchoAgent()
    agent.fail = failure
    process = await link.open_process(ask("one") + "; echo on", agent=agent.connect)
    assert await output(process) == b"closed\non\n"
    assert (await link.run("echo link lives")).stdout == b"link lives\n"


async def test_a_guest_that_opens_many_conversations_is_bounded(link):
    agent = EchoAgent()
    many = (
        "import os, socket; got = [];\n"
        "for n in range(60):\n"
        "  a = socket.socket(socket.AF_UNIX); a.connect(os.environ['SSH_AUTH_SOCK'])\n"
        "  try: a.sendall(b'x'); got.append((a, a.recv(9)))\n"
        "  except OSError: got.append((a, b''))\n"
        "print(sum(1 for a, data in got if data))"
    )
    process = await link.open_process(f'{sys.executable} -c "{many}"', agent=agent.connect)
    assert await output(process) == f"{MAX_CONVERSATIONS}\n".encode()
    assert agent.opened == MAX_CONVERSATIONS


async def test_a_real_agent_lists_its_key_in_the_guest(link, real_agent):
    process = await link.open_process("ssh-add -l", agent=real_agent)
    assert b"a key of the test" in await output(process)
    assert await process.wait() == 0
