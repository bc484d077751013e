"""Real commands on a pseudo-terminal or on pipes, with the instants of what a user sees of them.

The clock starts before the process is made, because a user waits for that, too. What is read is looked at
after its instant was taken.
"""

import contextlib
import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from claude_vm.bench.errors import BenchError
from claude_vm.bench.records import EXITED, SHOWN

TIMEOUT_S = 300.0
SIZE = (40, 120)
"""Rows and columns of a terminal of ours."""

_CHUNK = 64 * 1024
_KILL_S = 5.0
_KEPT = 64 * 1024

_ESCAPES = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_=>])")
_PROMPT = re.compile(rb"[#$%>] $")


def is_prompt(seen: bytes) -> bool:
    """Tell whether what a terminal got ends with a shell's prompt."""
    return bool(_PROMPT.search(_ESCAPES.sub(b"", seen)))


class TerminalStep(msgspec.Struct, frozen=True):
    """Something to wait for, by what came since the last step, and what to type then."""

    name: str
    seen: Callable[[bytes], bool]
    then: bytes = b""


PROMPT = (TerminalStep(SHOWN, is_prompt, b"exit\r"),)
OUTPUT = (TerminalStep(SHOWN, bool),)


class Timing(msgspec.Struct, frozen=True):
    """A command's life. `begun_at` is an instant, the others are seconds after it."""

    begun_at: float
    instants: dict[str, float]
    status: int
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether all steps came, and the command ended well."""
        return not self.error


def open_terminal() -> tuple[int, int]:
    """Return both ends of a new terminal of a usual size; ours first."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *SIZE, 0, 0))
    return ours, theirs


def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str],
    cwd: Path,
    steps: Sequence[TerminalStep] = OUTPUT,
    terminal: bool = False,
    hang_up: bool = False,
    timeout_s: float = TIMEOUT_S,
) -> Timing:
    """Run a command through its steps to its end. With `hang_up` it is ended after the last step.

    stderr is a pipe always, so that messages of the command's own are not taken for its output. Never
    raises for what the command does: that is in the result.
    """
    ours, theirs = open_terminal() if terminal else os.pipe()
    stdin = theirs if terminal else subprocess.DEVNULL
    begun = time.monotonic()
    child = subprocess.Popen(
        argv, stdin=stdin, stdout=theirs, stderr=subprocess.PIPE, env=env, cwd=cwd, start_new_session=True
    )
    os.close(theirs)
    watch = _Watch(child, ours, begun, steps, hang_up=hang_up)
    try:
        watch.follow(begun + timeout_s)
    finally:
        os.close(ours)
        assert child.stderr is not None  # noqa: S101 - it was asked for
        child.stderr.close()
    return watch.timing()


class _Watch:
    """One child, until its end or the deadline."""

    def __init__(
        self,
        child: subprocess.Popen[bytes],
        output: int,
        begun: float,
        steps: Sequence[TerminalStep],
        *,
        hang_up: bool,
    ) -> None:
        self._child = child
        self._output = output
        self._begun = begun
        self._steps = list(steps)
        self._hang_up = hang_up
        self._seen = b""
        self._said = b""
        self._instants: dict[str, float] = {}
        self._error = ""

    def follow(self, deadline: float) -> None:
        assert self._child.stderr is not None  # noqa: S101 - it was asked for
        messages = self._child.stderr.fileno()
        poller = select.poll()
        open_ = {self._output, messages}
        for descriptor in open_:
            poller.register(descriptor, select.POLLIN | select.POLLHUP)
        while open_ and (rest := deadline - time.monotonic()) > 0:
            for descriptor, _ in poller.poll(rest * 1000):
                data = _read(descriptor)
                now = time.monotonic()
                if not data:
                    poller.unregister(descriptor)
                    open_.discard(descriptor)
                elif descriptor == messages:
                    self._said = (self._said + data)[-_KEPT:]
                else:
                    self._take(data, now)
        if open_:
            self._error = f"not ended after {time.monotonic() - self._begun:.0f} s"
        self._end()

    def _take(self, data: bytes, now: float) -> None:
        self._seen = (self._seen + data)[-_KEPT:]
        if not self._steps or not self._steps[0].seen(self._seen):
            return
        step = self._steps.pop(0)
        self._instants[step.name] = now - self._begun
        self._seen = b""
        if step.then:
            with contextlib.suppress(OSError):  # it has ended meanwhile; its status tells
                os.write(self._output, step.then)
        if self._hang_up and not self._steps:
            self._child.send_signal(signal.SIGTERM)

    def _end(self) -> None:
        try:
            self._child.wait(_KILL_S if not self._error else 0.01)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
        self._instants[EXITED] = time.monotonic() - self._begun

    def timing(self) -> Timing:
        status = self._child.returncode
        error = self._error
        last = self._said.decode(errors="replace").strip().splitlines()[-1:]
        if not error and self._steps:
            error = f"ended with {status} before: {self._steps[0].name}"
        if not error and status and not self._hang_up:
            error = f"exit status {status}"
        if error and last:
            error = f"{error}: {last[0][:200]}"
        return Timing(self._begun, self._instants, status, error)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, _CHUNK)
    except OSError:  # how a terminal ends
        return b""


def together(starts: Sequence[float], run_one: Callable[[int], Timing]) -> list[Timing]:
    """Run commands side by side, each `starts` seconds after now, and return their timings in that order.

    One thread each, which does nothing but wait for its child.
    """
    if len(starts) == 1:
        return [run_one(0)]
    zero = time.monotonic() + 0.02  # all threads are there by then

    def start(index: int) -> Timing:
        time.sleep(max(0.0, zero + starts[index] - time.monotonic()))
        return run_one(index)

    with ThreadPoolExecutor(len(starts)) as threads:
        return list(threads.map(start, range(len(starts))))


def finished(
    argv: Sequence[str | Path],
    *,
    name: str,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    data: bytes = b"",
) -> subprocess.CompletedProcess[bytes]:
    """Run a command that is not measured to its end; `name` is what errors call it.

    Raises:
        BenchError: It can't be started, or takes too long.
    """
    try:
        return subprocess.run(
            argv, env=env, cwd=cwd, input=data, capture_output=True, check=False, timeout=timeout_s
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{name} takes longer than {timeout_s:.0f} s") from error
    except OSError as error:
        raise BenchError(f"{name}: {error.strerror}") from error
