"""One session at run time: what is decided of it, what it has come to, and its main command in the guest."""

import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import anyio
import msgspec

from claude_vm.drivers.api import Driver
from claude_vm.supervisor.conditions import AutoResetEvent
from claude_vm.supervisor.core.effects import EndSession
from claude_vm.supervisor.daemon.ports.published import Ports
from claude_vm.supervisor.daemon.sessions.outputs import Outputs, Reader
from claude_vm.supervisor.daemon.sessions.plan import SessionPlan
from claude_vm.supervisor.daemon.sessions.timings import Marks
from claude_vm.supervisor.ssh.agent import AgentListener, OpenAgent
from claude_vm.supervisor.ssh.errors import SshError
from claude_vm.supervisor.ssh.launch import AGENTS
from claude_vm.supervisor.ssh.link import Link
from claude_vm.supervisor.ssh.process import Pty
from claude_vm.supervisor.ssh.remaining import Remaining
from claude_vm.supervisor.ssh.shells import HeldProcess, Shells
from claude_vm.supervisor.wire.server import Level, TerminalSize

LAST_WORDS = 1024
"""Bytes that a terminal got last, and that are kept."""


CTRL_C = (b"\3", b"\x1b[99;5u")
"""What a terminal sends for it, in the second form with the keyboard protocol of kitty."""

During = Callable[[HeldProcess, Callable[[], Awaitable[int]]], Awaitable[int]]
"""Keeps a process in reach while something goes on with it; see `daemon.dispatch.reconnection`."""


class Attached(Reader, Protocol):
    """A client that is attached to a session, as the session sees it.

    `open_agent` opens connections to its SSH agent. `hints`: it is told also what might help.
    """

    open_agent: OpenAgent
    hints: bool

    def tell(self, text: str, level: Level) -> None:
        """Tell it a line. Never waits."""
        ...

    async def started(self, *, pty: bool) -> None:
        """Tell it that the main command runs. Does not wait."""
        ...


class EndedSession(msgspec.Struct, frozen=True):
    """What is kept of an ended session: its names are those of `Session`. `plan` has no files and no command.

    `marks` are names and instants in seconds of `time.monotonic`, see `timings`.
    """

    session_id: str
    plan: SessionPlan
    created_at: float
    phase: str
    source: str
    marks: list[tuple[str, float]]
    outcome: EndSession | None


class Session:
    """A session between its request and its end, whoever watches it. Its life is a task of `Sessions`.

    `found` says that a dead supervisor began it. `created_at` is a Unix time in seconds. `source` says how
    its VM came, see the core's `SessionView`; "" as long as it has none. `attached` is its client, if it has
    one; `readers` get what its main command writes, itself first, and may come and go at any time.
    `ended` is set when nothing of it is left in the core, `over` when what follows it was done, too.
    `remaining` and `last_words` are known at its end: what works yet in its guest, and the last bytes on its
    terminal. `abandoned` is set when its user does not wait for a silent guest any longer.
    """

    def __init__(
        self, session_id: str, plan: SessionPlan, *, created_at: float | None = None, found: bool = False
    ) -> None:
        self.session_id = session_id
        self.plan = plan
        self.found = found
        self.created_at = time.time() if created_at is None else created_at
        self.phase = "queued"
        self.source = ""
        self.ports = Ports(plan.publish, session_id)
        self.attached: Attached | None = None
        self.readers: list[Reader] = [self]
        self.ended = anyio.Event()
        self.over = anyio.Event()
        self.abandoned = anyio.Event()
        self.outcome: EndSession | None = None
        self.remaining = Remaining()
        self.last_words = b""
        self._marks = Marks()
        self._phase_changed = AutoResetEvent()
        self._listener: AgentListener | None = None
        self._interrupts: int | None = None  # while its guest does not answer
        self._process: HeldProcess | None = None
        self._outputs: Outputs | None = None
        self._running = anyio.Event()
        self._size: TerminalSize | None = None
        self._marks.add("requested")

    # What it has come to.

    @property
    def marks(self) -> list[tuple[str, float]]:
        """Names and instants in seconds of `time.monotonic`, see `timings`."""
        return self._marks.listed()

    def mark(self, name: str) -> None:
        """Note that it has come to something; a second time changes nothing."""
        self._marks.add(name)

    @property
    def has_begun(self) -> bool:
        """Whether its main command may have done something."""
        return self.found or any(name == "start" for name, _ in self.marks)

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
        return self.phase

    def kept(self) -> EndedSession:
        """Return what is kept of it after its end."""
        return EndedSession(
            session_id=self.session_id,
            plan=self.plan.without_secrets(),
            created_at=self.created_at,
            phase=self.phase,
            source=self.source,
            marks=self.marks,
            outcome=self.outcome,
        )

    # Its client.

    def attach(self, client: Attached) -> None:
        """Let a client read its outputs, and hear what there is to say. Before its life begins."""
        self.attached = client
        self.readers.append(client)

    def say(self, text: str, level: Level) -> None:
        """Tell its client a line, if there is one. Never waits."""
        if self.attached is not None:
            self.attached.tell(text, level)

    # Its main command.

    async def start(self, driver: Driver, instance_id: str, link: Link, shells: Shells) -> HeldProcess:
        """Start the main command in its guest; return its process.

        Raises:
            DriverError: The guest does not take its files.
            SshError: The connection is lost, or the guest has no shell.
        """
        launch = self.plan.launch
        if launch is None:  # pragma: no cover - it is started once
            raise RuntimeError("the session has nothing to start")
        self.mark("files")
        await self._listen_for_agent(link)
        file = launch.file(self.session_id, self._agent)
        await driver.put_files(instance_id, (*self.plan.files, file))
        self.mark("start")
        self.ports.connect(link)
        process = await shells.start(self.session_id, pty=self._current_pty())
        # No key or token is kept longer than needed: the guest has them now.
        self.plan = self.plan.without_secrets()
        return process

    async def carry(self, process: HeldProcess, during: During) -> int:
        """Carry the streams of the main command, which runs, to its end; return its exit status.

        `during` keeps it in reach meanwhile. Cancelled: the command is left to its VM's end.

        Raises:
            SshError: The connection is lost for good.
        """
        outputs = Outputs(process, self.readers)
        self._process, self._outputs = process, outputs
        if self.attached is not None:
            await self.attached.started(pty=self.plan.pty is not None)
        elif self.plan.pty is None:
            process.write_eof()  # nobody could write or end its input, so what reads it would wait for ever
        self._running.set()
        status = await during(process, outputs.carry)
        self.remaining = await process.remaining()
        return status

    async def take(self, output: int, data: bytes) -> None:  # noqa: ARG002 - a reader's signature
        """Note when output first came, and a terminal's last words. Does not wait."""
        self.mark("first-output")
        if self.plan.pty is not None:
            self.last_words = (self.last_words + data[-LAST_WORDS:])[-LAST_WORDS:]

    async def process(self) -> HeldProcess:
        """Return the process of the main command, as soon as it runs."""
        await self._running.wait()
        if self._process is None:  # pragma: no cover - set before
            raise RuntimeError("the session has no process")
        return self._process

    def typed(self, data: bytes) -> None:
        """See what is about to go to the input: where nobody answers, Ctrl-C is for us. Never waits."""
        if self.plan.pty is not None:
            for _ in range(min(sum(map(data.count, CTRL_C)), 2)):
                self._interrupted()

    def resize(self, size: TerminalSize) -> None:
        """Tell the terminal's size, now or when the main command starts. Never waits."""
        self._size = size
        if self._process is not None and self.plan.pty is not None:
            self._process.resize(size.rows, size.columns, size.width, size.height)

    def signal(self, name: str) -> bool:
        """Pass a signal on to the main command; False if there is none yet. Never waits."""
        if self._process is None or self._outputs is None:
            return False
        if name == "INT":
            self._interrupted()
        self._process.send_signal(name)
        self._outputs.hurry()
        return True

    # The way to its guest.

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
            self.say(f"claude-vm: the SSH agent is not forwarded any more: {error}", "urgent")

    def silent(self, seconds: float) -> None:
        """Its guest has said nothing for so long, and is waited for. Never waits."""
        self._interrupts = 0
        self.say(
            f"claude-vm: the guest has not answered for {seconds:.0f} s; it is waited for as long as its VM"
            " is there (Ctrl-C twice ends the session)",
            "urgent",
        )

    def heard_again(self, seconds: float, lost: int) -> None:
        """Its guest answers, after so long; `lost` bytes of output it could not keep. Never waits."""
        self._interrupts = None
        missing = f"; {lost} bytes of what it wrote meanwhile are lost" if lost else ""
        self.say(f"claude-vm: the guest answers again, after {seconds:.0f} s{missing}", "urgent")

    def _interrupted(self) -> None:
        """Take a Ctrl-C: where nobody answers, the second one ends the session."""
        if self._interrupts is not None:
            self._interrupts += 1
            if self._interrupts > 1:
                self.abandoned.set()

    @property
    def _agent(self) -> str:
        """Where the guest finds its SSH agent, or ""."""
        return f"{AGENTS}/{self.session_id}" if self.plan.forward_agent else ""

    async def _listen_for_agent(self, link: Link) -> None:
        if self._agent and self.attached is not None:
            self._listener = await link.listen_for_agent(self._agent, self.attached.open_agent)

    def _current_pty(self) -> Pty | None:
        """The terminal, with the size that it has by now."""
        pty, size = self.plan.pty, self._size
        if pty is None or size is None:
            return pty
        return msgspec.structs.replace(
            pty, rows=size.rows, columns=size.columns, width=size.width, height=size.height
        )
