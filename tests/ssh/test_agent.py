"""Agent forwarding: a fake agent answers, the guest's processes reach it through sshd's socket."""

import contextlib
import os
import sys

import anyio
import asyncssh
import pytest

from claude_vm.supervisor.ssh.agent import MAX_CONVERSATIONS
from claude_vm.supervisor.ssh.errors import ChannelRefusedError, LinkLostError
from claude_vm.supervisor.ssh.launch import LaunchMode
from claude_vm.supervisor.ssh.process import Pty
from claude_vm.supervisor.ssh.shells import ShellKind, prime

pytestmark = pytest.mark.anyio

ASK = (
    "import os, socket, struct, sys\n"
    "agent = socket.socket(socket.AF_UNIX)\n"
    "body = b'\\x0dquestion ' + sys.argv[1].encode()\n"
    "try:\n"
    "    agent.connect(os.environ['SSH_AUTH_SOCK'])\n"
    "    agent.sendall(struct.pack('>I', len(body)) + body)\n"
    "    answer = agent.recv(100)\n"
    "except OSError:\n"
    "    answer = b''\n"
    "print('refused' if answer == b'\\0\\0\\0\\1\\5' else answer[5:].decode() or 'closed')\n"
)
X = "struct.pack('>I', 2) + b'\\x0dx'"


class EchoAgent:
    """Answers each message with the same, in capitals; counts what is open. `heard` are the messages."""

    def __init__(self):
        self.open = 0
        self.opened = 0
        self.fail = None
        self.heard = []
        self.silent = False
        self.hangs_up = False

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
        self.agent.heard.append(data[4:])
        if self.agent.hangs_up:
            self.to.close()
        elif not self.agent.silent:
            await self.to.send(data[:5])
            await self.to.send(data[5:].upper())

    async def receive(self):
        return await self.answers.receive()

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
            LaunchMode.EXEC,
            [sys.executable, "-c", program, *map(str, words)],
            env={"SSH_AUTH_SOCK": socket_path},
            pty=pty,
        )
        try:
            yield process, listener
        finally:
            listener.close()
            await process.aclose()

    return start


async def ask_late(path):
    """Ask from another process of the guest, which is this host; the answer is a line."""
    asking = os.environ | {"SSH_AUTH_SOCK": path}
    return (await anyio.run_process([sys.executable, "-c", ASK, "late"], env=asking, check=False)).stdout


async def lives(link, path):
    """See that a connection goes on."""
    (await link.listen_for_agent(path, EchoAgent().connect)).close()


async def output(process):
    data = b""
    while part := await process.read_stdout(65536):
        data += part
    return data


async def test_without_an_agent_there_is_no_variable(session):
    process = await session(LaunchMode.EXEC, ["sh", "-c", "echo ${SSH_AUTH_SOCK-none}"])
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
    shells = await prime(link, [ShellKind.PIPES], term="xterm")
    listener = await link.listen_for_agent(socket_path, agent.connect)
    words = [sys.executable, "-c", ASK, "one"]
    process = await shells.start(put(LaunchMode.EXEC, words, env={"SSH_AUTH_SOCK": socket_path}), pty=None)
    assert await output(process) == b"QUESTION ONE\n"
    listener.close()
    await process.aclose()


async def test_a_socket_that_a_background_process_keeps_is_dead_after_the_end(forwarded, socket_path):
    agent = EchoAgent()
    async with forwarded(agent.connect, "") as (process, _):
        assert await process.wait() == 0
    assert b"QUESTION" not in await ask_late(socket_path)
    assert agent.opened == 0


async def test_a_conversation_that_is_under_way_is_cut_at_the_end(forwarded):
    agent = EchoAgent()
    hold = (
        "import os, socket, struct; a = socket.socket(socket.AF_UNIX)\n"
        f"a.connect(os.environ['SSH_AUTH_SOCK']); a.sendall({X}); print(a.recv(9)[5:], flush=True)\n"
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
    assert b"QUESTION" not in await ask_late(socket_path + "1")
    assert await ask_late(socket_path + "2") == b"QUESTION LATE\n"
    listeners[1].close()
    await all_closed(second)
    assert (first.opened, second.opened) == (0, 1)


@pytest.mark.parametrize("failure", [ConnectionRefusedError("no agent"), RuntimeError("client is gone")])
async def test_an_agent_that_fails_says_no_and_nothing_else_happens(link, forwarded, failure, socket_path):
    agent = EchoAgent()
    agent.fail = failure
    async with forwarded(agent.connect, ASK, "one") as (process, _):
        assert await output(process) == b"refused\n"
        await lives(link, socket_path + "2")


async def test_a_guest_that_opens_many_conversations_is_bounded(forwarded):
    agent = EchoAgent()
    many = (
        "import os, socket, struct; got = []\n"
        "for n in range(60):\n"
        "  a = socket.socket(socket.AF_UNIX); a.connect(os.environ['SSH_AUTH_SOCK'])\n"
        f"  try: a.sendall({X}); got.append((a, a.recv(9)))\n"
        "  except OSError: got.append((a, b''))\n"
        "print(sum(1 for a, data in got if data))"
    )
    async with forwarded(agent.connect, many) as (process, _):
        assert await output(process) == f"{MAX_CONVERSATIONS}\n".encode()
    assert agent.opened == MAX_CONVERSATIONS


async def test_a_path_where_the_guest_cannot_listen_is_an_error(link, socket_path):
    with pytest.raises(ChannelRefusedError):
        await link.listen_for_agent(socket_path + "/no/such/folder/" + "n" * 120, EchoAgent().connect)
    await lives(link, socket_path)


async def test_no_agent_over_a_connection_that_is_lost(link, server, socket_path):
    server.hang_up()
    await link.wait_closed()
    with pytest.raises(LinkLostError):
        await link.listen_for_agent(socket_path, EchoAgent().connect)


async def test_an_agent_that_hangs_up_says_no_and_is_not_asked_again(forwarded):
    agent = EchoAgent()
    agent.hangs_up = True
    async with forwarded(agent.connect, ASK + ASK, "one") as (process, _):
        assert (await output(process)).split() == [b"refused"] * 2
    await all_closed(agent)
    assert len(agent.heard) == 2  # the greeting of each conversation


async def test_what_a_guest_may_not_ask_never_reaches_the_agent(forwarded):
    agent = EchoAgent()
    many = (
        "import os, socket, struct\n"
        "a = socket.socket(socket.AF_UNIX); a.connect(os.environ['SSH_AUTH_SOCK'])\n"
        "allowed = {11, 13}\n"
        "frames = [struct.pack('>I', 5) + bytes([n]) + b'text' for n in range(256)]\n"
        "a.sendall(b''.join(frames))\n"  # all at once: the answers come in their order
        "stream = a.makefile('rb')\n"
        "for n in range(256):\n"
        "    (length,) = struct.unpack('>I', stream.read(4)); answer = stream.read(length)\n"
        "    assert answer == (bytes([n]) + b'TEXT' if n in allowed else b'\\5'), (n, answer)\n"
        "print('right')"
    )
    async with forwarded(agent.connect, many) as (process, _):
        assert await output(process) == b"right\n", await output_of(process.read_stderr)
    assert agent.heard[0].startswith(b"\x1b\0\0\0\x18session-bind@openssh.com")
    assert agent.heard[1:] == [b"\x0btext", b"\x0dtext"]


async def test_nobody_opens_the_agent_for_a_guest_that_may_not_ask_it(forwarded):
    agent = EchoAgent()
    lock = ASK.replace("x0d", "x16")
    async with forwarded(agent.connect, lock, "one") as (process, _):
        assert await output(process) == b"refused\n"
    assert agent.opened == 0


@pytest.mark.parametrize("length", [0, 256 * 1024 + 1, 0xFFFFFFFF])
async def test_a_message_of_no_or_too_great_a_length_ends_the_conversation(forwarded, length):
    agent = EchoAgent()
    odd = (
        "import os, socket, struct; a = socket.socket(socket.AF_UNIX)\n"
        f"a.connect(os.environ['SSH_AUTH_SOCK']); a.sendall({X} + struct.pack('>I', {length}))\n"
        "data = b''\n"
        "try:\n"
        "    while part := a.recv(99): data += part\n"
        "except ConnectionResetError: pass\n"
        "print(len(data) <= 6)"
    )
    async with forwarded(agent.connect, odd) as (process, _):
        with anyio.fail_after(20):
            assert await output(process) == b"True\n"
    await all_closed(agent)


async def test_a_guest_that_goes_while_the_agent_thinks_leaves_nothing_open(forwarded):
    agent = EchoAgent()
    agent.silent = True
    hasty = (
        "import os, socket, struct; a = socket.socket(socket.AF_UNIX)\n"
        f"a.connect(os.environ['SSH_AUTH_SOCK']); a.sendall({X}); a.settimeout(2)\n"
        "try: a.recv(1)\n"
        "except TimeoutError: print('gone')"
    )
    async with forwarded(agent.connect, hasty) as (process, _):
        assert await output(process) == b"gone\n"
        await all_closed(agent)
    assert agent.opened == 1


async def output_of(read):
    data = b""
    while part := await read(65536):
        data += part
    return data


async def test_a_real_agent_lists_its_key_in_the_guest(forwarded, real_agent):
    program = "import os; os.execvp('ssh-add', ['ssh-add', '-l'])"
    async with forwarded(real_agent, program) as (process, _):
        assert b"a key of the test" in await output(process)
        assert await process.wait() == 0


ALL_REQUESTS = """
import os, socket, struct, sys
kinds, extensions = range(256), (b"query", b"lock-all@example.com", b"restrict-destination-v00@openssh.com")
def string(data): return struct.pack(">I", len(data)) + data
bodies = {
    22: string(b"pass"), 23: string(b"pass"),
    17: open(sys.argv[1], "rb").read(), 18: string(open(sys.argv[2], "rb").read()),
    20: string(b"/usr/lib/x86_64-linux-gnu/libc.so.6") + string(b""), 21: string(b"/x.so") + string(b""),
    26: string(b"/usr/lib/x86_64-linux-gnu/libc.so.6") + string(b""),
}
requests = [bytes([k]) + bodies.get(k, b"") for k in kinds if k != 27]
requests += [b"\\x1b" + string(e) for e in extensions]
for request in requests:
    a = socket.socket(socket.AF_UNIX); a.connect(os.environ["SSH_AUTH_SOCK"])
    a.sendall(string(request)); s = a.makefile("rb")
    answer = s.read(struct.unpack(">I", s.read(4))[0]); a.close()
    name = request[0] == 27 and request[5:].decode()
    print(request[0], name, answer[0], flush=True)
"""


async def test_a_real_agent_is_the_same_after_every_request_there_is(forwarded, real_agent, tmp_path):
    (other,) = asyncssh.load_keypairs([asyncssh.generate_private_key("ssh-ed25519")])
    (tmp_path / "add").write_bytes(other.get_agent_private_key() + bytes(4))
    (tmp_path / "remove").write_bytes(real_agent.blob)
    before = real_agent.run("ssh-add", "-L")
    assert before.returncode == 0
    async with forwarded(real_agent, ALL_REQUESTS, tmp_path / "add", tmp_path / "remove") as (process, _):
        rows = [line.split() for line in (await output(process)).decode().splitlines()]
    assert len(rows) == 258
    answers = {(int(row[0]), row[1]): int(row[2]) for row in rows}
    # 12 are the keys, 29 what it can, if it tells. A signature by no key fails at the agent itself.
    served = {request: n for request, n in answers.items() if n != 5}
    assert served in ({(11, "False"): 12}, {(11, "False"): 12, (27, "query"): 29})
    assert real_agent.run("ssh-add", "-L").stdout == before.stdout


async def test_a_guest_signs_with_a_key_of_the_real_agent(forwarded, real_agent):
    program = (
        "import os, subprocess, sys; open('m', 'w').write('text')\n"
        "done = subprocess.run(['ssh-keygen', '-Y', 'sign', '-n', 'file', '-f', sys.argv[1], 'm'],"
        " stdin=subprocess.DEVNULL)\n"
        "print(done.returncode, os.path.exists('m.sig'))"
    )
    async with forwarded(real_agent, program, real_agent.public) as (process, _):
        assert await output(process) == b"0 True\n"


@pytest.mark.parametrize("words", [["-D"], ["-x"], ["-s", "/usr/lib/x86_64-linux-gnu/libc.so.6"], ["-d"]])
async def test_a_guest_changes_nothing_of_the_real_agent(forwarded, real_agent, words):
    before = real_agent.run("ssh-add", "-L").stdout
    program = (
        "import os, subprocess, sys\n"
        "os.environ |= {'SSH_ASKPASS': '/bin/true', 'SSH_ASKPASS_REQUIRE': 'force'}\n"
        "print(subprocess.run(['ssh-add', *sys.argv[1:]], stdin=subprocess.DEVNULL).returncode)"
    )
    if words == ["-d"]:
        words = ["-d", real_agent.public]
    async with forwarded(real_agent, program, *words) as (process, _):
        assert await output(process) != b"0\n"
    assert real_agent.run("ssh-add", "-L").stdout == before


async def test_a_key_for_one_destination_is_not_there_for_a_guest(forwarded, real_agent, tmp_path):
    """The agent knows that it is forwarded, and over what: the guest is no way to that destination."""
    known = tmp_path / "known_hosts"
    known.write_text("example.com " + real_agent.public.read_text())
    real_agent.add("bound", "-h", "example.com", "-H", known)
    assert b"bound" in real_agent.run("ssh-add", "-l").stdout
    program = "import os; os.execvp('ssh-add', ['ssh-add', '-l'])"
    async with forwarded(real_agent, program) as (process, _):
        listed = await output(process)
    assert b"a key of the test" in listed
    assert b"bound" not in listed


@pytest.mark.parametrize("to", ["next", "elsewhere"])
async def test_a_key_for_the_way_through_a_guest_goes_no_other_way(
    server, forwarded, other_sshd, real_agent, to
):
    """So what the agent was told is true to the byte, and the guest's own ssh could tell it the next hop."""
    known = real_agent.folder / "known_hosts"
    next_key = other_sshd.access().host_key if to == "next" else real_agent.public.read_text()
    known.write_text(f"guest {server.access().host_key}\nnext {next_key}\n")
    bound = real_agent.add("bound", "-h", "guest", "-h", "guest>next", "-H", known)
    (other_sshd.folder / "authorized_keys").write_text(bound.read_text())
    program = (
        "import subprocess, sys\n"
        "done = subprocess.run(['ssh', '-F', 'none', '-p', sys.argv[1], '-i', sys.argv[2],"
        " '-o', 'StrictHostKeyChecking=no', '-o', 'UserKnownHostsFile=/dev/null', '-o', 'BatchMode=yes',"
        " '127.0.0.1', 'echo reached'], stdin=subprocess.DEVNULL, capture_output=True)\n"
        "print(done.stdout.decode() or 'refused')"
    )
    async with forwarded(real_agent, program, other_sshd.port, bound) as (process, _):
        assert (await output(process)).strip() == (b"reached" if to == "next" else b"refused")
