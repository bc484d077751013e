"""Our stdout or stderr: written piece by piece, without ever waiting for its reader.

The descriptor stays in blocking mode, because that mode belongs to everyone who shares it, such as the
shell. A pipe or terminal that is ready takes at least `select.PIPE_BUF` bytes, so pieces of that size
never wait; it is asked before each piece, because stdout and stderr may be the same pipe.
"""

import errno
import os
import select
import stat
from collections import deque
from collections.abc import Callable

from claude_vm.supervisor.cli.polling import WRITE, Poller
from claude_vm.supervisor.wire.errors import ProtocolError
from claude_vm.supervisor.wire.messages import WINDOW

PIECES = 32
"""Pieces that are written in a row before others get their turn."""

LARGE = 64 * 1024
ACKNOWLEDGE = 128 * 1024
"""Acknowledge when so many bytes were written. What is less stays unsaid: the window is larger."""


class OutputWriter:
    """A descriptor and what waits to be written to it.

    `error` is the errno that ended it, or 0. `observe`, if set, is given counted data once, before it is
    written. `queued` is in bytes.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.error = 0
        self.observe: Callable[[bytes], None] | None = None
        self._unacknowledged = 0
        self._queue: deque[tuple[memoryview, bool]] = deque()
        self._poller = Poller()
        self._written = 0
        self._observed = 0
        self.queued = 0
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._piece = LARGE if regular else select.PIPE_BUF

    def put(self, data: bytes, *, counted: bool) -> None:
        """Queue data; `counted` data is acknowledged to the daemon when it is written. Ended: it is dropped.

        Raises:
            ProtocolError: More counted data than the window allows.
        """
        if not self.error:
            self._unacknowledged += len(data) if counted else 0
            if self._unacknowledged > WINDOW:
                raise ProtocolError("more output than the window allows")
            self._queue.append((memoryview(data), counted))
            self.queued += len(data)

    def write(self) -> bool:
        """Write what the descriptor takes now; return whether it ended by that."""
        for _ in range(PIECES):
            if not self._queue:
                return False
            data, counted = self._queue[0]
            piece = data[: self._piece]
            if self.observe is not None and counted:
                # First, because a signal may end us right after the write.
                self.observe(bytes(piece[self._observed :]))
                self._observed = len(piece)
            try:
                count = os.write(self.descriptor, piece)
            except BlockingIOError:
                return False  # someone made it non-blocking
            except OSError as error:
                self._end(error.errno or errno.EIO)
                return True
            self._observed = max(self._observed - count, 0)
            self.queued -= count
            self._written += count if counted else 0
            if count == len(data):
                self._queue.popleft()
            else:
                self._queue[0] = (data[count:], counted)
            if not self._poller.wait({self.descriptor: WRITE}, 0):
                return False
        return False

    def take_acknowledged(self) -> int:
        """Return how many counted bytes to acknowledge now; 0 for: not yet."""
        if self._written >= ACKNOWLEDGE:
            count, self._written = self._written, 0
            self._unacknowledged -= count
            return count
        return 0

    def _end(self, number: int) -> None:
        self.error = number
        self._queue.clear()
        self.queued = 0
