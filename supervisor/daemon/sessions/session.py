"""One session at run time: the client that watches it, if there is one, and the main command in its guest."""

import time
from collections.abc import Awaitable, Callable

import anyio
import msgspec

from claude_vm.context.ports import Publish
from claude_vm.drivers.api import Driver, GuestFile
from claude_vm.supervisor.core.effects import EndSession
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.daemon.ports.published import Ports
from claude_vm.supervisor.daemon.sessions.client_agent import agent_of
from claude_vm.supervisor.daemon.sessions.relay import relay
from claude_vm.supervisor.daemon.sessions.timings import Marks
from claude_vm.supervisor.ssh.agent import AgentListener
from claude_vm.supervisor.ssh.errors import SshError
from claude_vm.supervisor.ssh.launch import AGENTS, Mode, launch_file
from claude_vm.supervisor.ssh.link import Link
from claude_vm.supervisor.ssh.process import Pty
from claude_vm.supervisor.ssh.remaining import Remaining
from claude_vm.supervisor.ssh.shells import HeldProcess, Shells
from claude_vm.supervisor.wire.server import Client, Signal, Size

LAST_WORDS = 1024
"""Bytes that a terminal got last, and that are kept."""


CTRL_C = (b"\3", b"\x1b[99;5u")
"""What a terminal sends for it, in the second form with the keyboard protocol of kitty."""

During = Callable[[HeldProcess, Callable[[], Awaitable[int]]], Awaitable[int]]
"""Keeps a process in reach while something goes on with it; see `daemon.dispatch.reach`."""


class Launch(msgspec.Struct, frozen=True):
    """A main command: what runs, with what environment, where. See `claude_vm.supervisor.ssh.launch`."""

    mode: Mode
    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str

    def check(self) -> None:
        """Refuse what no guest could run, before one is spent.

        Raises:
            LaunchError: What `launch_file` would refuse.
        """
        self.file("check", "")

    def file(self, session_id: str, agent: str) -> GuestFile:
        """Return the file for the guest. `agent` is where a forwarded agent is in there, "" if none is.

        Raises:
            LaunchError: See `launch_file`.
        """
        env = self.env | ({"SSH_AUTH_SOCK": agent} if agent else {})
        return launch_file(session_id, mode=self.mode, argv=self.argv, env=env, cwd=self.cwd)


class SessionPlan(msgspec.Struct, frozen=True):
    """All that is decided before a VM is asked for.

    `label` is one line for listings; `launch` the main command, None where it runs since before this
    supervisor; `files` go into the guest before it starts; `writes` are the host directories that it works
    in (`claude_vm.supervisor.daemon.sessions.sharing`).
    """

    key: PoolKey
    project: str
    label: str
    launch: Launch | None
    files: tuple[GuestFile, ...] = ()
    pty: Pty | None = None
    forward_agent: bool = False
    publish: Publish = Publish()
    writes: tuple[str, ...] = ()


class EndedSession(msgspec.Struct, frozen=True):
    """What is kept of an ended session: its names are those of `Session`. `plan` has no files and no command.

    `marks` are names and instants in seconds of `time.monotonic`, see `sessions.timings`.
    """

    session_id: str
    plan: SessionPlan
    created_at: float
    phase: str
    source: str
    marks: list[tuple[str, float]]
    outcome: EndSession | None


class Session:
    """A session between its request and its end. Lives in the task that serves its client.

    One that was found after a supervisor's death has no client. `created_at` is a Unix time in seconds.
    `source` says how its VM came, see the core's `SessionView`; "" as long as it has none. `remaining` and
    `last_words` are known at its end: what works yet in its guest, and the last bytes on its terminal.
    `abandoned` is set when its user does not wait for a silent guest any longer.
    """

    def __init__(
        self, session_id: str, plan: SessionPlan, client: Client | None, created_at: float | None = None
    ) -> None:
        self.session_id = session_id
        self.plan = plan
        self.client = client
        self.created_at = time.time() if created_at is None else created_at
        self.phase = "queued"
        self.source = ""
        self.ports = Ports(plan.publish, session_id)
        self.ended = anyio.Event()
        self.outcome: EndSession | None = None
        self.remaining = Remaining()
        self.last_words = b""
        self._marks = Marks()
        self._phase_changed = anyio.Event()
        self.abandoned = anyio.Event()
        self._listener: AgentListener | None = None
        self._interrupts: int | None = None  # while its guest does not answer
        self._process: HeldProcess | None = None
        self._size: Size | None = None
        self._signalled = anyio.Event()
        self._marks.add("requested")

    @property
    def marks(self) -> list[tuple[str, float]]:
        """Names and instants in seconds of `time.monotonic`, see `sessions.timings`."""
        return self._marks.listed()

    def mark(self, name: str) -> None:
        """Note that it has come to something; a second time changes nothing."""
        self._marks.add(name)

    def tell(self, phase: str, source: str = "") -> None:
        """Note the phase, and how its VM came if that is known, for the client and listings. Never waits."""
        self.phase = phase
        self.source = source or self.source
        match phase:
            case "queued":
                self.mark("queued")
            case "delete":
                self.mark("ended")
            case _:
                self.mark("claimed")
        if phase in {"clone", "connect"}:
            self.mark(phase)
        self._phase_changed.set()

    def finish(self, outcome: EndSession) -> None:
        """The core's last word. Never waits."""
        self.mark("ended")
        self.mark("deleted")
        self.outcome = outcome
        self.ended.set()

    async def next_phase(self) -> str:
        """Wait until the phase changes; phases that follow each other quickly may be skipped."""
        await self._phase_changed.wait()
        self._phase_changed = anyio.Event()
        return self.phase

    async def next_stop(self, client: Client) -> str:
        """Carry sizes and signals to the main command; return a signal's name when there is none yet."""
        while True:
            match await client.next_control():
                case Size() as size:
                    self._size = size
                    if self._process is not None and self.plan.pty is not None:
                        self._process.resize(size.rows, size.columns, size.width, size.height)
                case Signal(name=name):
                    if self._process is None:
                        return name
                    if name == "INT":
                        self._interrupted()
                    self._process.send_signal(name)
                    self._signalled.set()
                    self._signalled = anyio.Event()

    async def run(
        self,
        driver: Driver,
        instance_id: str,
        link: Link,
        shells: Shells,
        *,
        started: Callable[[], None],
        during: During,
    ) -> int:
        """Run the main command to its end and return its exit status; call `started` once it runs.

        `during` keeps it in reach while its streams are carried, and returns its status.

        Cancelled: the command is left to its VM's end.

        Raises:
            DriverError: The guest does not take its files.
            SshError: The connection is lost, or the guest has no shell.
        """
        client = self.client
        if client is None or self.plan.launch is None:  # pragma: no cover - such a session is only resumed
            raise RuntimeError("the session has no client, or nothing to start")
        self.mark("files")
        await self._listen_for_agent(link)
        process: HeldProcess | None = None
        try:
            await driver.put_files(instance_id, _files(self.session_id, self.plan, self._agent))
            self.mark("start")
            self.ports.connect(link)
            process = held = await shells.start(self.session_id, pty=self._current_pty())
            self._process = process
            self._shed_secrets(client)
            started()
            await client.started(pty=self.plan.pty is not None)

            async def carry() -> int:
                return await relay(
                    client,
                    held,
                    on_output=self._note_output,
                    next_signal=self._next_signal,
                    on_input=self._note_input,
                )

            status = await during(process, carry)
            self.remaining = await process.remaining()
            return status
        finally:
            self.unlinked()
            if process is not None:
                await process.aclose()

    @property
    def _agent(self) -> str:
        """Where the guest finds its SSH agent, or ""."""
        return f"{AGENTS}/{self.session_id}" if self.plan.forward_agent else ""

    async def _listen_for_agent(self, link: Link) -> None:
        if self._agent and self.client is not None:
            self._listener = await link.listen_for_agent(self._agent, agent_of(self.client))

    def unlinked(self) -> None:
        """There is no connection to its guest. Never waits; may be called twice."""
        self.ports.disconnect()
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    async def linked_again(self, link: Link) -> None:
        """There is another connection to its guest: give it what the former one had."""
        self.ports.connect(link)
        try:
            await self._listen_for_agent(link)
        except SshError as error:
            self._tell(f"claude-vm: the SSH agent is not forwarded any more: {error}")

    def silent(self, seconds: float) -> None:
        """Its guest has said nothing for so long, and is waited for. Never waits."""
        self._interrupts = 0
        self._tell(
            f"claude-vm: the guest has not answered for {seconds:.0f} s; it is waited for as long as its VM"
            " is there (Ctrl-C twice ends the session)"
        )

    def heard_again(self, seconds: float, lost: int) -> None:
        """Its guest answers, after so long; `lost` bytes of output it could not keep. Never waits."""
        self._interrupts = None
        missing = f"; {lost} bytes of what it wrote meanwhile are lost" if lost else ""
        self._tell(f"claude-vm: the guest answers again, after {seconds:.0f} s{missing}")

    def _tell(self, text: str) -> None:
        if self.client is not None:
            self.client.note_nowait(text, "urgent")

    def _interrupted(self) -> None:
        """Take a Ctrl-C: where nobody answers, the second one ends the session."""
        if self._interrupts is not None:
            self._interrupts += 1
            if self._interrupts > 1:
                self.abandoned.set()

    def kept(self) -> EndedSession:
        """Return what is kept of it after its end."""
        return EndedSession(
            session_id=self.session_id,
            plan=_without_secrets(self.plan),
            created_at=self.created_at,
            phase=self.phase,
            source=self.source,
            marks=self.marks,
            outcome=self.outcome,
        )

    def _shed_secrets(self, client: Client) -> None:
        """Keep no key or token longer than needed: the guest has them now."""
        self.plan = _without_secrets(self.plan)
        client.forget_environment()

    def _note_output(self, data: bytes) -> None:
        self.mark("first-output")
        if self.plan.pty is not None:
            self.last_words = (self.last_words + data[-LAST_WORDS:])[-LAST_WORDS:]

    def _note_input(self, data: bytes) -> None:
        if self.plan.pty is not None:
            for _ in range(min(sum(map(data.count, CTRL_C)), 2)):
                self._interrupted()

    async def _next_signal(self) -> None:
        """Wait until the client has sent a signal to the main command."""
        await self._signalled.wait()

    def _current_pty(self) -> Pty | None:
        """The terminal, with the size that it has by now."""
        pty, size = self.plan.pty, self._size
        if pty is None or size is None:
            return pty
        return msgspec.structs.replace(
            pty, rows=size.rows, columns=size.columns, width=size.width, height=size.height
        )


def _files(session_id: str, plan: SessionPlan, agent: str) -> tuple[GuestFile, ...]:
    """Return what goes into the guest before the command starts; `agent` is where it finds its SSH agent."""
    launch = plan.launch
    if launch is None:  # pragma: no cover - see `Session.run`
        return plan.files
    file = launch.file(session_id, agent)
    return (*plan.files, file)


def _without_secrets(plan: SessionPlan) -> SessionPlan:
    return msgspec.structs.replace(plan, launch=None, files=())
