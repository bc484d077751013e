"""Our terminal: its size, raw mode, and how it is given back."""

import contextlib
import fcntl
import os
import struct
import termios
from collections.abc import Callable

from claude_vm.supervisor.cli.polling import WRITE, Poller

STDIN, STDOUT, STDERR = 0, 1, 2

_WINDOW_SIZE = struct.Struct("4H")

PATIENCE_S = 0.5
"""How long a terminal may take for the bytes that reset it, in seconds. A stopped one gets none."""


def is_terminal(descriptor: int) -> bool:
    """Tell whether a descriptor is a terminal; a closed one is not."""
    with contextlib.suppress(OSError):
        return os.isatty(descriptor)
    return False


def window_size() -> tuple[int, int, int, int]:
    """Return rows, columns, width and height in pixels of our terminal; zeros when there is none."""
    for descriptor in (STDOUT, STDIN, STDERR):
        with contextlib.suppress(OSError):
            data = fcntl.ioctl(descriptor, termios.TIOCGWINSZ, bytes(_WINDOW_SIZE.size))
            rows, columns, width, height = _WINDOW_SIZE.unpack(data)
            return rows, columns, width, height
    return 0, 0, 0, 0


class RawTerminal:
    """Raw mode of the terminal at stdin, on demand. `restore` is idempotent and does not raise."""

    def __init__(self) -> None:
        self._undo: Callable[[], bytes] = bytes
        self._saved: list[object] | None = None

    @property
    def is_raw(self) -> bool:
        """Whether raw mode is on."""
        return self._saved is not None

    def enter(self, undo: Callable[[], bytes]) -> None:
        """Switch raw mode on. What was typed before stays in the queue.

        `undo` tells at the end what to write to the terminal, to undo what programs have set.
        """
        self._undo = undo
        with contextlib.suppress(termios.error):
            self._saved = termios.tcgetattr(STDIN)
            self._apply_raw()

    def enter_again(self) -> None:
        """Switch raw mode on again after we were stopped, unless we go on in the background."""
        with contextlib.suppress(termios.error, OSError):
            if self._saved is not None and os.tcgetpgrp(STDIN) == os.getpgrp():
                self._apply_raw()

    def restore(self) -> None:
        """Undo what the guest's programs set, and give the terminal back as it was."""
        if self._saved is None:
            return
        undo = self._undo()
        if undo and is_terminal(STDOUT):
            with contextlib.suppress(OSError):
                if Poller().wait({STDOUT: WRITE}, PATIENCE_S):
                    os.write(STDOUT, undo)
        with contextlib.suppress(termios.error):
            if undo:
                # Reports of the mouse and the like, that are on their way, are nobody's input now.
                termios.tcflush(STDIN, termios.TCIFLUSH)
            # Not TCSADRAIN: it would wait for a terminal that is stopped.
            termios.tcsetattr(STDIN, termios.TCSANOW, self._saved)  # type: ignore[arg-type]
        self._saved = None

    def _apply_raw(self) -> None:
        """As cfmakeraw(3) does."""
        mode = termios.tcgetattr(STDIN)
        mode[0] &= ~(
            termios.IGNBRK
            | termios.BRKINT
            | termios.PARMRK
            | termios.ISTRIP
            | termios.INLCR
            | termios.IGNCR
            | termios.ICRNL
            | termios.IXON
        )
        mode[1] &= ~termios.OPOST
        mode[2] = (mode[2] & ~(termios.CSIZE | termios.PARENB)) | termios.CS8
        mode[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        mode[6][termios.VMIN] = 1
        mode[6][termios.VTIME] = 0
        termios.tcsetattr(STDIN, termios.TCSADRAIN, mode)
