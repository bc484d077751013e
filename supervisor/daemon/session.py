"""One session at run time: the client that watches it, and the main command in its guest."""

import time
from collections.abc import Callable

import anyio
import anyio.abc
import msgspec
import structlog

from claude_vm.drivers.api import Driver, GuestFile
from claude_vm.supervisor.core.effects import EndSession
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.daemon.relay import relay
from claude_vm.supervisor.ssh.agent import AgentListener
from claude_vm.supervisor.ssh.launch import AGENTS, Mode, launch_files
from claude_vm.supervisor.ssh.link import Link
from claude_vm.supervisor.ssh.process import Pty
from claude_vm.supervisor.ssh.shells import HeldProcess, Shells
from claude_vm.supervisor.wire.server import Client, Signal, Size

log = structlog.get_logger()


class Launch(msgspec.Struct, frozen=True):
    """A main command: what runs, with what environment, where. See `claude_vm.supervisor.ssh.launch`."""

    mode: Mode
    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str


class SessionPlan(msgspec.Struct, frozen=True):
    """All that is decided before a VM is asked for.

    `label` is one line for listings; `launch` the main command; `files` go into the guest before it starts.
    """

    key: PoolKey
    project: str
    label: str
    launch: Launch
    files: tuple[GuestFile, ...] = ()
    pty: Pty | None = None
    forward_agent: bool = False


class Session:
    """A session between its request and its end. Lives in the task that serves its client."""

    def __init__(self, session_id: str, plan: SessionPlan, client: Client) -> None:
        self.session_id = session_id
        self.plan = plan
        self.client = client
        self.created_at = time.time()
        self.phase = "queued"
        self.ended = anyio.Event()
        self.outcome: EndSession | None = None
        self._phase_changed = anyio.Event()
        self._process: HeldProcess | None = None
        self._size: Size | None = None

    def tell(self, phase: str) -> None:
        """Note the phase, for the client and for listings. Never waits."""
        self.phase = phase
        self._phase_changed.set()

    def finish(self, outcome: EndSession) -> None:
        """The core's last word. Never waits."""
        self.outcome = outcome
        self.ended.set()

    async def next_phase(self) -> str:
        """Wait until the phase changes; phases that follow each other quickly may be skipped."""
        await self._phase_changed.wait()
        self._phase_changed = anyio.Event()
        return self.phase

    async def next_stop(self) -> str:
        """Carry sizes and signals to the main command; return a signal's name when there is none yet."""
        while True:
            match await self.client.next_control():
                case Size() as size:
                    self._size = size
                    if self._process is not None and self.plan.pty is not None:
                        self._process.resize(size.rows, size.columns, size.width, size.height)
                case Signal(name=name):
                    if self._process is None:
                        return name
                    self._process.send_signal(name)

    async def run(
        self, driver: Driver, instance_id: str, link: Link, shells: Shells, started: Callable[[], None]
    ) -> int:
        """Run the main command to its end and return its exit status; call `started` once it runs.

        Cancelled: the command is left to its VM's end.

        Raises:
            DriverError: The guest does not take its files.
            SshError: The connection is lost, or the guest has no shell.
        """
        plan = self.plan
        launch = plan.launch
        agent = f"{AGENTS}/{self.session_id}" if plan.forward_agent else ""
        env = launch.env | ({"SSH_AUTH_SOCK": agent} if agent else {})
        files = launch_files(self.session_id, mode=launch.mode, argv=launch.argv, env=env, cwd=launch.cwd)
        listener: AgentListener | None = None
        if agent:
            listener = await link.listen_for_agent(agent, self._open_agent)
        process: HeldProcess | None = None
        try:
            await driver.put_files(instance_id, (*plan.files, *files))
            process = await shells.start(self.session_id, pty=self._current_pty())
            self._process = process
            started()
            await self.client.started(pty=plan.pty is not None)
            return await relay(self.client, process)
        finally:
            if listener is not None:
                listener.close()
            if process is not None:
                await process.aclose()

    def _current_pty(self) -> Pty | None:
        """The terminal, with the size that it has by now."""
        pty, size = self.plan.pty, self._size
        if pty is None or size is None:
            return pty
        return msgspec.structs.replace(
            pty, rows=size.rows, columns=size.columns, width=size.width, height=size.height
        )

    async def _open_agent(self) -> "_Agent":
        return _Agent(await self.client.open_agent())


class _Agent:
    """The client's agent as the SSH side wants it: its end is an empty read."""

    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        self._stream = stream
        self.send = stream.send
        self.aclose = stream.aclose

    async def receive(self) -> bytes:
        """Return the next bytes, empty at the end."""
        try:
            return await self._stream.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            return b""
