import base64
import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import anyio
import asyncssh
import msgspec
import psutil
import pytest

from claude_vm.drivers.sim.guest import Guest
from claude_vm.drivers.sim.holding import HolderThread
from claude_vm.supervisor.ssh.launch import launch_file
from claude_vm.supervisor.ssh.link import connect
from claude_vm.supervisor.ssh.shells import ShellKind, prime

GUEST = Path(__file__).parents[2] / "drivers/guest"


def _load(name):
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"claude_vm_tests_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


sshd_module = _load("sshd")
_load("reading")


@pytest.fixture
def anyio_backend():
    return "asyncio"


class SimServer:
    """A simulated guest, with the interface of `Sshd`."""

    def __init__(self, folder):
        folder.mkdir()
        self.holders = HolderThread()
        self.guest = Guest(folder, None, self.holders)
        self.run = self.guest.run
        self.scratch = self.guest.home
        self.pinned = None

    async def start(self):
        self.pinned = await self.guest.start()

    def access(self, *, host_key="host", client_key="client"):
        other = asyncssh.generate_private_key("ssh-ed25519")
        access = self.pinned
        if host_key != "host":
            access = msgspec.structs.replace(access, host_key=other.export_public_key().decode())
        if client_key != "client":
            path = self.guest.folder / client_key
            path.write_bytes(other.export_private_key())
            access = msgspec.structs.replace(access, client_key=path)
        return access

    def hang_up(self):
        self.guest.stop_nowait("hung up")


@pytest.fixture
def openssh(tmp_path):
    if sshd_module.find_sshd() is None:
        pytest.skip("no sshd on this host (Debian: openssh-server)")
    server = sshd_module.Sshd(tmp_path / "server")
    yield server
    server.close()


@pytest.fixture
def other_sshd(tmp_path):
    """One more machine, for what goes on from a guest."""
    if sshd_module.find_sshd() is None:
        pytest.skip("no sshd on this host (Debian: openssh-server)")
    server = sshd_module.Sshd(tmp_path / "other")
    yield server
    server.close()


@pytest.fixture(params=["openssh", "sim"])
async def server(request, tmp_path):
    """An SSH server as a guest has it: OpenSSH's, and the simulated one."""
    if request.param == "openssh":
        yield request.getfixturevalue("openssh")
    else:
        sim = SimServer(tmp_path / "server")
        await sim.start()
        yield sim
        await sim.guest.stop("the test is over")
        sim.holders.close()


@pytest.fixture
async def link(server):
    async with contextlib.aclosing(await connect(server.access(), timeout_s=20)) as link:
        yield link


@pytest.fixture
def home(server):
    """The home of the guest's user, as its shells have it."""
    if hasattr(server, "guest"):
        return server.guest.home
    path = server.holder.with_name("home")
    path.mkdir(parents=True)
    return path


@pytest.fixture
def holder(server, home):
    """The guest's holder; gives its process, or None where the simulated guest has its own.

    OpenSSH has none, so this starts one as the guest's helper does.
    """
    if hasattr(server, "guest"):
        yield None
        return
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(server.holder))
        listener.listen(64)
        process = subprocess.Popen(
            [sys.executable, "-I", GUEST, "holder", str(listener.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=(listener.fileno(),),
            env=os.environ | {"HOME": str(home), "CLAUDE_VM_RUN": str(server.run)},
        )
    yield process
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    for member in (process, *family):
        with contextlib.suppress(psutil.Error):
            member.kill()
    process.wait()
    process.stdin.close()


@pytest.fixture
def put(server, holder):
    """Place a session's files, as a driver would; return its id."""
    count = 0

    def place(mode, argv=(), *, env=None, cwd=""):
        nonlocal count
        count += 1
        session_id = f"{count:010x}"
        file = launch_file(session_id, mode=mode, argv=argv, env=env, cwd=cwd)
        path = server.run / "sessions" / session_id / Path(file.path).name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.data)
        return session_id

    place.folder = server.run / "sessions"
    return place


@pytest.fixture
def session(link, put):
    """Prime, and let the shell become a session."""

    async def start(mode, argv=(), *, pty=None, env=None, cwd=""):
        shells = await prime(link, list(ShellKind), term="xterm-256color")
        return await shells.start(put(mode, argv, env=env, cwd=cwd), pty=pty)

    return start


class RealAgent:
    """An ssh-agent with one key. Called, it is an `OpenAgent`."""

    def __init__(self, folder):
        self.folder = folder
        self.path = folder / "s"
        self.process = subprocess.Popen(["ssh-agent", "-D", "-a", str(self.path)], stdout=subprocess.PIPE)
        assert self.process.stdout.readline()
        self.public = self.add("a key of the test")

    @property
    def blob(self):
        """The first key in SSH's encoding."""
        return base64.b64decode(self.public.read_text().split()[1])

    def add(self, comment, *options):
        key = self.folder / comment.replace(" ", "-")
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(key)], check=True
        )
        assert self.run("ssh-add", "-q", *options, key).returncode == 0
        return key.with_name(key.name + ".pub")

    def run(self, *words):
        """Run a program of the host's user."""
        return subprocess.run(
            words, capture_output=True, check=False, env={**os.environ, "SSH_AUTH_SOCK": str(self.path)}
        )

    async def __call__(self):
        return await anyio.connect_unix(self.path)

    def close(self):
        self.process.terminate()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def real_agent(tmp_path_factory):
    agent = RealAgent(tmp_path_factory.mktemp("a"))
    yield agent
    agent.close()
