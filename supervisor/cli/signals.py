"""Signals of the client: some are passed on, some end it; all of them wake the relay."""

import contextlib
import os
import signal
from types import FrameType as StackFrame
from types import TracebackType

from claude_vm.supervisor.statuses import SIGNALLED

PASSED_ON = (signal.SIGINT, signal.SIGWINCH, signal.SIGCONT)
ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class EndedBySignalError(Exception):
    """A signal ends this process. Raised wherever the main thread is, also out of a write that waits."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """A context that takes signals over; afterwards they do what they did before.

    Signals that were ignored before stay ignored: ``nohup`` and background jobs mean it.
    """

    def __init__(self) -> None:
        self._before: dict[int, object] = {}
        self._read_end = self._write_end = -1
        self._wakeup_before = -1

    def __enter__(self) -> "Signals":  # noqa: PYI034 - importing Self costs as much as a bare interpreter
        """Take the signals over."""
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        os.set_blocking(self._write_end, False)
        self._wakeup_before = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        for number in (*PASSED_ON, *ENDING):
            before = signal.getsignal(number)
            if before is signal.SIG_IGN:
                continue
            self._before[number] = before
            signal.signal(number, _end if number in ENDING else _wake)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the signals back."""
        for number, before in self._before.items():
            signal.signal(number, before)  # type: ignore[arg-type]
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._read_end)
        os.close(self._write_end)

    def fileno(self) -> int:
        """Return a descriptor that is readable when signals came."""
        return self._read_end

    def take(self) -> bytes:
        """Return the numbers of the signals that came, in order."""
        with contextlib.suppress(BlockingIOError):
            return os.read(self._read_end, 1024)
        return b""


def die_of(number: int) -> int:
    """End this process by a signal's default action. Returns only if that is impossible: the exit status."""
    signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    return SIGNALLED + number


def _wake(_number: int, _frame: StackFrame | None) -> None:
    """The wake-up descriptor has said it already."""


def _end(number: int, _frame: StackFrame | None) -> None:
    # Once only: what restores the terminal must not be interrupted by the same again.
    for other in ENDING:
        signal.signal(other, signal.SIG_IGN)
    raise EndedBySignalError(number)
