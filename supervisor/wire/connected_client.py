"""A connected client, as the daemon's commands see it."""

from collections import deque
from collections.abc import Iterable
from typing import Literal

import anyio
import msgspec

from claude_vm.supervisor.conditions import Condition
from claude_vm.supervisor.wire.agent import AgentStream
from claude_vm.supervisor.wire.error_text import beneath as indented
from claude_vm.supervisor.wire.errors import (
    AgentRefusedError,
    ClientGoneError,
    OutputClosedError,
    ProtocolError,
)
from claude_vm.supervisor.wire.escape import escape_line
from claude_vm.supervisor.wire.flow import Inflow, Outbox, Window
from claude_vm.supervisor.wire.framing import (
    Frame,
    decode_number,
    decode_size,
    encode,
    encode_json,
    encode_numbers,
)
from claude_vm.supervisor.wire.messages import MAX_AGENTS, MAX_DATA, SIGNALS, WINDOW, FrameType
from claude_vm.supervisor.wire.records import Invocation, decode_answer

Level = Literal["info", "verbose", "error", "progress", "urgent"]
"""What a note is. ``progress`` may be rewritten by the next one on a terminal; ``urgent`` is shown even on
the screen of a program that has the terminal."""

LONGEST_NOTE = 32 * 1024
"""Characters of a note that are shown."""


class TerminalSize(msgspec.Struct, frozen=True):
    """A terminal's size: rows and columns of characters, width and height in pixels (0: not known)."""

    rows: int
    columns: int
    width: int = 0
    height: int = 0


class Signal(msgspec.Struct, frozen=True):
    """A signal for the main command; `name` is without SIG and one of `messages.SIGNALS`."""

    name: str


class Client:
    """One client and its invocation. Every method belongs to its answer's own task and its children.

    `has_started` says whether the client was told that its main command runs. `gone` is set when the client
    went away (it ended, broke the protocol, or was cut off). From then on notes are dropped, outputs raise
    `ClientGoneError`, prompts are answered None, and `receive_stdin` and `next_control` wait for ever: an
    input that was cut off must not look complete. So watch `gone`.

    Everything may be cancelled at any await without harm to the connection.
    """

    def __init__(self, invocation: Invocation, outbox: Outbox) -> None:
        self.invocation = invocation
        self.gone = anyio.Event()
        self.has_started = False
        self._outbox = outbox
        self._stdin = Inflow(WINDOW)
        self._stdout = Window(WINDOW)
        self._stderr = Window(WINDOW)
        self._output_of = {
            FrameType.STDOUT_ACK: self._stdout,
            FrameType.STDOUT_CLOSED: self._stdout,
            FrameType.STDERR_ACK: self._stderr,
            FrameType.STDERR_CLOSED: self._stderr,
        }
        self._size: TerminalSize | None = None
        self._signals: deque[Signal] = deque()
        self._control = Condition()
        self._asked = 0
        self._answers: deque[str | None] = deque()
        self._answered = Condition()
        self._one_prompt = anyio.Lock()
        self._agents: dict[int, AgentStream] = {}
        self._next_agent = 1

    def forget_environment(self) -> None:
        """Keep no variable of the client's but those that say where it is at home: others may be secrets."""
        for name in self.invocation.env.keys() - {"HOME", "PATH"}:
            del self.invocation.env[name]

    async def note(self, text: str, level: Level = "info", beneath: Iterable[str] = ()) -> None:
        """Show a line on the client's stderr, and others beneath it, indented.

        Whatever is in them, line ends too, is made visible; very long text is cut.
        """
        await self._outbox.wait_for_room()
        self.note_nowait(text, level, beneath)

    def note_nowait(self, text: str, level: Level = "info", beneath: Iterable[str] = ()) -> None:
        """Do as `note` without waiting; for a bounded number of notes."""
        shown = escape_line(text[: LONGEST_NOTE + 1])
        for line in beneath:
            if len(shown) > LONGEST_NOTE:
                break
            shown += "\n" + escape_line(indented(line[: LONGEST_NOTE + 1]))
        if len(shown) > LONGEST_NOTE:
            shown = shown[:LONGEST_NOTE] + " … (cut)"
        self._outbox.put(encode_json(FrameType.NOTE, {"text": shown, "level": level}))

    async def prompt(self, text: str) -> str | None:
        """Ask for one line on the client's terminal; None when there is no terminal, or no line."""
        async with self._one_prompt:
            await self._outbox.wait_for_room()
            shown = escape_line(text[:LONGEST_NOTE])
            self._outbox.put(encode_json(FrameType.PROMPT, {"text": shown}))
            self._asked += 1
            while not self._answers:
                if self.gone.is_set():
                    return None
                await self._answered.wait()
            return self._answers.popleft()

    def started_nowait(self, *, pty: bool) -> None:
        """Say that the main command runs: stdin flows from now on; with `pty` its terminal is raw."""
        self.has_started = True
        self._outbox.put(encode_json(FrameType.STARTED, {"pty": pty}))

    async def receive_stdin(self) -> bytes:
        """Return the next bytes of the client's stdin, at most `messages.MAX_DATA`, or ``b""`` at its end.

        The call tells the client that what the former call returned was passed on: so call it again only
        then, and a stopped receiver stops the client's reader. For one receiver at a time.
        """
        if count := self._stdin.take_acknowledged():
            self._outbox.put(encode_numbers(FrameType.STDIN_ACK, count))
        return await self._stdin.receive(MAX_DATA)

    async def send_stdout(self, data: bytes) -> None:
        """Write to the client's stdout; waits as long as its reader has not taken enough of what came before.

        Raises:
            OutputClosedError: Nobody reads it any more.
        """
        await self._send(self._stdout, FrameType.STDOUT, data)

    async def send_stderr(self, data: bytes) -> None:
        """Write to the client's stderr, byte for byte (not escaped). Otherwise as `send_stdout`.

        Raises:
            OutputClosedError: Nobody reads it any more.
        """
        await self._send(self._stderr, FrameType.STDERR, data)

    async def next_control(self) -> TerminalSize | Signal:
        """Return the next signal, or the terminal's newest size; they never wait behind data.

        Signals come first. Like real ones, a signal that is pending already is not counted again.
        """
        while True:
            if self._signals:
                return self._signals.popleft()
            if self._size is not None:
                size, self._size = self._size, None
                return size
            await self._control.wait()

    async def open_agent(self) -> AgentStream:
        """Open a channel to the client's SSH agent. Where there is none the channel ends at once.

        The caller closes it.

        Raises:
            AgentRefusedError: The client is gone, or has `messages.MAX_AGENTS` channels open.
        """
        if self.gone.is_set():
            raise AgentRefusedError("the client with the SSH agent is gone")
        if len(self._agents) >= MAX_AGENTS:
            raise AgentRefusedError(f"{MAX_AGENTS} connections to the SSH agent are open already")
        channel = self._next_agent
        self._next_agent += 1
        agent = AgentStream(channel, self._outbox, self._forget_agent)
        self._agents[channel] = agent
        self._outbox.put(encode_numbers(FrameType.AGENT_OPEN, channel))
        return agent

    # What the connection calls (see `server`).

    def take_nowait(self, frame: Frame) -> None:
        """Take a frame from the client. Never waits.

        Raises:
            ProtocolError: It is not allowed, here or now.
        """
        kind, payload = frame
        match kind:
            case FrameType.STDIN:
                self._stdin.put(payload)
            case FrameType.STDIN_EOF:
                self._stdin.end()
            case FrameType.STDOUT_ACK | FrameType.STDERR_ACK:
                self._output_of[kind].give(decode_number(payload))
            case FrameType.STDOUT_CLOSED | FrameType.STDERR_CLOSED:
                self._output_of[kind].close(OutputClosedError("nobody reads this output any more"))
            case FrameType.SIZE:
                self._size = TerminalSize(*decode_size(payload))
                self._control.notify_all()
            case FrameType.SIGNAL:
                self._take_signal(payload)
            case FrameType.ANSWER:
                self._take_answer(payload)
            case FrameType.AGENT_DATA | FrameType.AGENT_ACK | FrameType.AGENT_CLOSE:
                self._take_agent(kind, payload)
            case _:
                raise ProtocolError(f"a frame {kind.name} is not allowed here")

    def leave_nowait(self) -> None:
        """Note that the client is gone. Repeating it is fine."""
        self.gone.set()
        for window in (self._stdout, self._stderr):
            window.close(ClientGoneError("the client is gone"))
        for agent in list(self._agents.values()):
            agent.end_nowait()
        self._answered.notify_all()

    def exit_nowait(self, status: int) -> None:
        """Say the last word; the first one counts."""
        self._outbox.put_last(encode_json(FrameType.EXIT, {"status": status & 0xFF}))

    async def _send(self, window: Window, kind: FrameType, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            count = await window.take(min(len(rest), MAX_DATA))
            self._outbox.put(encode(kind, bytes(rest[:count])))
            rest = rest[count:]

    def _take_signal(self, payload: bytes) -> None:
        name = payload.decode("ascii", "replace")
        if name not in SIGNALS:
            raise ProtocolError("a frame SIGNAL that names no signal")
        if Signal(name) not in self._signals:
            self._signals.append(Signal(name))
            self._control.notify_all()

    def _take_answer(self, payload: bytes) -> None:
        if not self._asked:
            raise ProtocolError("an answer to no question")
        self._asked -= 1
        self._answers.append(decode_answer(payload))
        self._answered.notify_all()

    def _take_agent(self, kind: FrameType, payload: bytes) -> None:
        channel = decode_number(payload)
        agent = self._agents.get(channel)
        if agent is None:
            if channel >= self._next_agent:
                raise ProtocolError("a channel to the SSH agent that was never opened")
            return  # crossed with our closing it
        if kind is FrameType.AGENT_DATA:
            agent.put_nowait(payload[4:])
        elif kind is FrameType.AGENT_ACK:
            agent.acknowledge_nowait(decode_number(payload, 4))
        else:
            agent.end_nowait()

    def _forget_agent(self, channel: int) -> None:
        self._agents.pop(channel, None)
