"""Between our terminal or pipes and the daemon: one loop that waits for everything at once.

Nothing here waits for one thing alone, so that signals and sizes pass whatever is stuck. What is held is
bounded: the windows of stdout and stderr, one read of stdin, and few notes.
"""

import errno
import os
import signal

from claude_vm.supervisor.cli.notes import Notes
from claude_vm.supervisor.cli.outputs import OutputWriter
from claude_vm.supervisor.cli.polling import READ, WRITE, Poller
from claude_vm.supervisor.cli.signals import Signals
from claude_vm.supervisor.cli.tty import (
    STDERR,
    STDIN,
    STDOUT,
    RawTerminal,
    is_terminal,
    window_size,
)
from claude_vm.supervisor.statuses import OUTPUT_CLOSED, SESSION_FAILED
from claude_vm.supervisor.wire.client import DaemonConnection, RefusedError
from claude_vm.supervisor.wire.errors import ProtocolError, WireError
from claude_vm.supervisor.wire.framing import (
    Frame,
    decode_json,
    decode_number,
    encode,
    encode_json,
    encode_numbers,
    encode_size,
)
from claude_vm.supervisor.wire.messages import MAX_DATA, WINDOW, FrameType

TYPE_CHECKING = False  # importing typing would cost as much as a bare interpreter
if TYPE_CHECKING:
    from claude_vm.supervisor.cli.agents import Agents

UNSENT = 128 * 1024
"""Unsent bytes for the daemon above which stdin is not read."""

MOST_HELD = 100
"""Notes that are kept while a program has the terminal."""

UNWRITTEN = 4 * WINDOW
"""Unwritten bytes (two windows, and notes) above which the daemon is not read."""

LONGEST_LINE = 4096
"""Bytes of an answer to a question. A terminal has no longer lines."""


class LostDaemonError(WireError):
    """The daemon ended in the middle."""

    code = "daemon-lost"

    def __init__(self, *, started: bool) -> None:
        super().__init__(
            "the daemon ended during the session" if started else "the daemon ended, and this command with it"
        )
        self.hint = (
            "the session goes on in its VM: find it with `claude-vm ps`, end it with `claude-vm stop`"
            if started
            else "the next command cleans up what it left"
        )


class InterruptedTwiceError(Exception):
    """Ctrl-C again before the command has started: leave at once, the daemon cleans up."""


class Relay:
    """One command from the daemon's welcome to its exit status."""

    def __init__(self, connection: DaemonConnection, signals: Signals) -> None:
        self._connection = connection
        self._signals = signals
        self._poller = Poller()
        self._terminal = RawTerminal()
        self._stdout = OutputWriter(STDOUT)
        self._stderr = OutputWriter(STDERR)
        self._notes = Notes()
        self._held: list[tuple[str, str]] = []
        self._agents: Agents | None = None
        self._status: int | None = None
        self._started = False
        self._interrupts = 0
        self._reads_stdin = False
        self._credit = WINDOW
        self._question: bytearray | None = None

    def run(self) -> int:
        """Relay until the daemon has told the exit status and all output is written; return the status.

        The terminal is as it was before when this returns or raises, whatever happens.

        Raises:
            LostDaemonError: The daemon ended before it told the status.
            RefusedError: The daemon cut us off.
            InterruptedTwiceError: See there.
            EndedBySignalError: A signal ends this process.
            ProtocolError: The daemon sent what it must not.
        """
        try:
            while self._step():
                pass
            if self._status is None:
                raise LostDaemonError(started=self._started)
        finally:
            self._terminal.restore()
            self._tell_held()
            if self._agents is not None:
                self._agents.close()
        return self._final_status(self._status)

    def _step(self) -> bool:
        """Wait once and do what can be done; return whether there is more to do."""
        over = self._status is not None or self._connection.ended
        if over and not self._stdout.queued and not self._stderr.queued:
            return False
        ready = self._poller.wait(self._wanted(over=over), 0 if self._connection.has_early_frames else None)
        if self._signals.fileno() in ready:
            for number in self._signals.take():
                self._take_signal(number)
        if ready.get(self._connection.fileno(), 0) & READ or self._connection.has_early_frames:
            for frame in self._connection.receive():
                self._take(frame)
        if STDIN in ready:
            self._read_stdin()
        self._write(self._stdout, ready, FrameType.STDOUT_ACK, FrameType.STDOUT_CLOSED)
        self._write(self._stderr, ready, FrameType.STDERR_ACK, FrameType.STDERR_CLOSED)
        if self._agents is not None:
            self._agents.relay(ready)
        self._connection.flush()
        return True

    def _wanted(self, *, over: bool) -> dict[int, int]:
        wanted = {self._signals.fileno(): READ}
        if not over:
            events = WRITE if self._connection.pending else 0
            if self._stdout.queued + self._stderr.queued <= UNWRITTEN:
                events |= READ
            if events:
                wanted[self._connection.fileno()] = events
            flows = self._reads_stdin and self._credit and self._connection.pending < UNSENT
            if flows or self._question is not None:
                wanted[STDIN] = READ
            if self._agents is not None:
                wanted |= self._agents.wanted()
        for output in (self._stdout, self._stderr):
            if output.queued:
                wanted[output.descriptor] = WRITE
        return wanted

    def _take(self, frame: Frame) -> None:
        if self._status is not None:
            return
        kind, payload = frame
        match kind:
            case FrameType.STDOUT | FrameType.STDERR:
                self._settle()
                output = self._stdout if kind is FrameType.STDOUT else self._stderr
                output.put(payload, counted=True)
            case FrameType.STDIN_ACK:
                self._credit += decode_number(payload)
                if self._credit > WINDOW:
                    raise ProtocolError("more bytes of stdin are acknowledged than were sent")
            case FrameType.AGENT_OPEN | FrameType.AGENT_DATA | FrameType.AGENT_ACK | FrameType.AGENT_CLOSE:
                self._take_agent(kind, decode_number(payload), payload[4:])
            case FrameType.REFUSED:
                raise RefusedError.of(payload)
            case _:
                self._take_message(kind, decode_json(kind, payload))

    def _take_message(self, kind: FrameType, message: dict[str, object]) -> None:
        match kind:
            case FrameType.NOTE:
                self._take_note(str(message.get("text", "")), str(message.get("level", "")))
            case FrameType.PROMPT:
                self._ask(str(message.get("text", "")))
            case FrameType.STARTED:
                self._start(pty=message.get("pty") is True)
            case FrameType.EXIT:
                status = message.get("status")
                self._status = status & 0xFF if isinstance(status, int) else SESSION_FAILED
                self._settle()
            case _:
                raise ProtocolError(f"a frame {kind.name} is not allowed here")

    def _take_agent(self, kind: FrameType, channel: int, data: bytes) -> None:
        if self._agents is None:
            from claude_vm.supervisor.cli.agents import Agents  # noqa: PLC0415 - only with -A

            self._agents = Agents(self._connection.put)
        self._agents.take(kind, channel, data)

    def _start(self, *, pty: bool) -> None:
        """The main command runs."""
        self._settle()
        self._stderr.write()
        self._started = True
        self._reads_stdin = True
        stdin_is_terminal = is_terminal(STDIN)
        if pty and stdin_is_terminal:
            from claude_vm.supervisor.cli.terminal import ModeTracker  # noqa: PLC0415 - compiles patterns

            tracker = ModeTracker()
            self._stdout.observe = tracker.feed
            self._terminal.enter(tracker.undo)
            self._send_size()
        elif stdin_is_terminal and not is_terminal(STDOUT):
            # As `x=$(claude-vm …)`: nobody means to type, and Claude's -p would wait for it.
            self._end_stdin()

    def _take_note(self, text: str, level: str) -> None:
        """Show a note; while a program has the terminal, keep it, if it can wait: there it would be lost."""
        if not self._terminal.is_raw:
            self._note(self._notes.render(text, level))
        elif level == "urgent":
            self._note(self._notes.interrupting(text))
        elif level != "progress" and len(self._held) < MOST_HELD:
            self._held.append((text, level))

    def _tell_held(self) -> None:
        if not self._held:
            return
        data = b"".join(self._notes.render(text, level) for text, level in self._held)
        self._held.clear()
        try:
            while data:
                data = data[os.write(STDERR, data) :]
        except OSError:
            return  # nobody reads it

    def _note(self, data: bytes) -> None:
        if data:
            self._stderr.put(data, counted=False)

    def _settle(self) -> None:
        self._note(self._notes.settle())

    def _ask(self, text: str) -> None:
        if not is_terminal(STDIN) or not is_terminal(STDERR) or self._started:
            self._answer(None)
            return
        self._settle()
        self._note(text.encode("utf-8", "surrogateescape"))
        self._question = bytearray()

    def _answer(self, line: str | None) -> None:
        self._question = None
        self._connection.put(encode_json(FrameType.ANSWER, {"line": line}))

    def _read_stdin(self) -> None:
        asked = self._question is not None
        try:
            data = os.read(STDIN, LONGEST_LINE if asked else min(self._credit, MAX_DATA))
        except BlockingIOError:
            return
        except OSError:
            data = b""  # a terminal that hung up
        if self._question is not None:
            self._question += data
            if not data and not self._question:
                self._answer(None)
            elif not data or data.endswith(b"\n") or len(self._question) > LONGEST_LINE:
                self._answer(self._question.decode("utf-8", "surrogateescape").rstrip("\r\n"))
        elif data:
            self._credit -= len(data)
            self._connection.put(encode(FrameType.STDIN, data))
        else:
            self._end_stdin()

    def _end_stdin(self) -> None:
        self._reads_stdin = False
        self._connection.put(encode(FrameType.STDIN_EOF))

    def _write(self, output: OutputWriter, ready: dict[int, int], ack: FrameType, closed: FrameType) -> None:
        if not ready.get(output.descriptor, 0) & WRITE or output.error:
            return
        ended = output.write()
        if count := output.take_acknowledged():
            self._connection.put(encode_numbers(ack, count))
        if ended:
            self._connection.put(encode(closed))

    def _take_signal(self, number: int) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1 and (not self._started or self._status is not None):
                raise InterruptedTwiceError
            self._connection.put(encode(FrameType.SIGNAL, b"INT"))
        elif number == signal.SIGWINCH:
            self._send_size()
        elif number == signal.SIGCONT:
            self._terminal.enter_again()
            self._send_size()

    def _send_size(self) -> None:
        rows, columns, width, height = window_size()
        if rows and columns:
            self._connection.put(encode_size(rows, columns, width, height))

    def _final_status(self, status: int) -> int:
        if self._stdout.error == errno.EPIPE:
            return OUTPUT_CLOSED
        if self._stdout.error:
            reason = os.strerror(self._stdout.error)
            os.write(STDERR, f"claude-vm: stdout can't be written: {reason} [output-failed]\n".encode())
            return SESSION_FAILED
        return status
