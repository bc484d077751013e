"""One session at run time: what is decided of it, what it has come to, and its main command in the guest."""

import time
from typing import Protocol

import anyio
import msgspec

from claude_vm.drivers.api import Driver
from claude_vm.supervisor.conditions import AutoResetEvent
from claude_vm.supervisor.core.effects import EndSession
from claude_vm.supervisor.daemon.ports.published import Ports
from claude_vm.supervisor.daemon.sessions.outputs import Outputs, Reader
from claude_vm.supervisor.daemon.sessions.plan import SessionPlan
from claude_vm.supervisor.daemon.state.records import JournaledSession
from claude_vm.supervisor.ssh.agent import AgentListener, OpenAgent
from claude_vm.supervisor.ssh.errors import SshError
from claude_vm.supervisor.ssh.launch import AGENTS
from claude_vm.supervisor.ssh.link import Link
from claude_vm.supervisor.ssh.process import Pty
from claude_vm.supervisor.ssh.remaining import RemainingWork
from claude_vm.supervisor.ssh.shells import HeldProcess, Shells
from claude_vm.supervisor.wire.connected_client import Level, TerminalSize

LAST_WORDS = 1024
"""Bytes that a terminal got last, and that are kept."""

CTRL_C = (b"\3", b"\x1b[99;5u")
"""What a terminal sends for it, in the second form with the keyboard protocol of kitty."""


class AttachedClient(Reader, Protocol):
    """A client that is attached to a session, as the session sees it.

    `open_agent` opens connections to its SSH agent, if it forwards that. `hints`: it is told also what might
    help.
    """

    open_agent: OpenAgent | None
    hints: bool

    def tell(self, text: str, level: Level) -> None:
        """Tell it a line. Never waits."""
        ...

    def started(self, *, pty: bool) -> None:
        """Tell it that the main command runs. Never waits."""
        ...


class EndedSession(msgspec.Struct, frozen=True):
    """What is kept of an ended session: its names are those of `Session`. `plan` has no files and no command.

    `marks` are those of `Session.marks`.
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
    its VM came, see the core's `SessionView`; "" as long as it has none. `clients` are attached to it. Who
    else reads what its main command writes, such as a recorder, its surroundings add to its `outputs`.
    `ended` is set when nothing of it is left in the core, `over` when what follows it was done, too.
    `remaining` and `last_words` are known at its end: what works yet in its guest, and the last bytes on its
    terminal. `abandoned` is set when its user does not wait for a silent guest any longer. `stop` is why, and
    with what status, it shall end, if that was said before the core knew it.
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
        self.clients: list[AttachedClient] = []
        self.outputs = Outputs(self._note_output)
        self.ended = anyio.Event()
        self.over = anyio.Event()
        self.abandoned = anyio.Event()
        self.stop: tuple[str, int] | None = None
        self.outcome: EndSession | None = None
        self.remaining = RemainingWork()
        self.last_words = b""
        self._marks: dict[str, float] = {}
        self._phase_changed = AutoResetEvent()
        self._listener: AgentListener | None = None
        self._interrupts: int | None = None  # while its guest does not answer
        self._process: HeldProcess | None = None
        self._running = anyio.Event()
        self._size: TerminalSize | None = None
        self.mark("requested")

    # What it has come to.

    @property
    def marks(self) -> list[tuple[str, float]]:
        """When it came to what: names, and instants in seconds of `time.monotonic`, in this order.

        That clock is the host's: a client may lay instants of its own beside these. Names, as far as they
        occur: requested, queued, claimed, clone, the driver's own (`Capabilities.phases`), connect, prime,
        files, start, first-output, ended, deleted. Each says that this begins, or has happened.
        """
        return list(self._marks.items())

    def mark(self, name: str) -> None:
        """Note that it has come to something; a second time changes nothing."""
        if name not in self._marks:
            self._marks[name] = time.monotonic()

    @property
    def has_begun(self) -> bool:
        """Whether its main command may have done something."""
        return self.found or "start" in self._marks

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
        self.plan = self.plan.without_secrets()
        self.ended.set()

    async def next_phase(self) -> str:
        """Wait until the phase changes; phases that follow each other quickly may be skipped."""
        await self._phase_changed.wait()
        return self.phase

    @property
    def journaled(self) -> JournaledSession:
        """What the journal has of it."""
        return JournaledSession(
            session_id=self.session_id,
            project=self.plan.project,
            command_text=self.plan.command_text,
            pty=self.plan.pty is not None,
            created_at=self.created_at,
            publish=tuple(self.plan.publish.words),
        )

    def kept(self) -> EndedSession:
        """Return what is kept of it after its end."""
        return msgspec.convert(self, EndedSession, from_attributes=True)

    # Its clients.

    def attach(self, client: AttachedClient) -> None:
        """Let a client read its outputs from now on, and hear what there is to say. Never waits.

        It counts: the command ends when the last attached client has closed an output.
        """
        self.clients.append(client)
        self.outputs.add(client, counts=True)
        if self._running.is_set():
            client.started(pty=self.plan.pty is not None)

    def detach(self, client: AttachedClient) -> None:
        """Let a client go; the session goes on. Never waits."""
        self.clients.remove(client)
        self.outputs.remove(client)

    def say(self, text: str, level: Level) -> None:
        """Tell its clients a line, if there are any. Never waits."""
        for client in self.clients:
            client.tell(text, level)

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
        file = launch.file(self.session_id, await self._listen_for_agent(link))
        await driver.put_files(instance_id, (*self.plan.files, file))
        self.mark("start")
        self.ports.connect(link)
        process = await shells.start(self.session_id, pty=self._current_pty())
        # No key or token is kept longer than needed: the guest has them now.
        self.plan = self.plan.without_secrets()
        return process

    async def carry(self, process: HeldProcess) -> int:
        """Carry the streams of the main command, which runs, to its end; return its exit status.

        Cancelled: the command is left to its VM's end.

        Raises:
            SshError: The connection is lost for good.
        """
        self._process = process
        for client in self.clients:
            client.started(pty=self.plan.pty is not None)
        if not self.clients and self.plan.pty is None:
            process.write_eof()  # nobody could write or end its input, so what reads it would wait for ever
        self._running.set()
        status = await self.outputs.carry(process)
        if self.clients:  # nobody else is told
            self.remaining = await process.remaining()
        return status

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
        if self._process is None:
            return False
        if name == "INT":
            self._interrupted()
        self._process.send_signal(name)
        self.outputs.hurry()
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
            self.say(f"claude-vm: the SSH agent is no longer forwarded: {error}", "urgent")

    def silent(self, seconds: float) -> None:
        """Tell that its guest has been silent for so long. Never waits."""
        self._interrupts = 0
        self.say(
            f"claude-vm: the guest has not answered for {seconds:.0f} s; claude-vm waits as long as its VM"
            " runs (Ctrl-C twice ends the session)",
            "urgent",
        )

    def heard_again(self, seconds: float, lost: int) -> None:
        """Tell that its guest answers again; it could not keep `lost` bytes of output. Never waits."""
        self._interrupts = None
        missing = f"; {lost} bytes of what it wrote meanwhile are lost" if lost else ""
        self.say(f"claude-vm: the guest answers again, after {seconds:.0f} s{missing}", "urgent")

    def _interrupted(self) -> None:
        """Take a Ctrl-C: where nobody answers, the second one ends the session."""
        if self._interrupts is not None:
            self._interrupts += 1
            if self._interrupts > 1:
                self.abandoned.set()

    def _note_output(self, data: bytes) -> None:
        """Note when output first came, and a terminal's last words."""
        self.mark("first-output")
        if self.plan.pty is not None:
            self.last_words = (self.last_words + data[-LAST_WORDS:])[-LAST_WORDS:]

    async def _listen_for_agent(self, link: Link) -> str:
        """Return where the guest finds the SSH agent of the first client that forwards its own, or ""."""
        path = f"{AGENTS}/{self.session_id}"
        for client in self.clients:
            if client.open_agent is not None:
                self._listener = await link.listen_for_agent(path, client.open_agent)
                return path
        return ""

    def _current_pty(self) -> Pty | None:
        """The terminal, with the size that it has by now."""
        pty, size = self.plan.pty, self._size
        if pty is None or size is None:
            return pty
        return msgspec.structs.replace(pty, **msgspec.structs.asdict(size))
