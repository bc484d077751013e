"""What a shell writes, kept until it has arrived."""

import os
import selectors
import struct
from collections.abc import Callable

from .frames import encode
from .loop import Loop

CHUNK = 1 << 16
KEPT = 1 << 20
"""Bytes of each output that are kept without an acknowledgement."""


class Kept:
    """The last part of an output: `data` begins at the offset `base`."""

    def __init__(self) -> None:
        self.base = 0
        self.data = bytearray()
        self.ended = False

    @property
    def end(self) -> int:
        """The offset behind the last byte."""
        return self.base + len(self.data)

    def drop_to(self, offset: int) -> None:
        """Forget what comes before an offset."""
        count = min(max(offset - self.base, 0), len(self.data))
        del self.data[:count]
        self.base += count


class Output:
    """One output of a shell, read from a descriptor as long as there is room.

    `news` is called when there is something to send. With `overwrites` the oldest output goes when there is
    no room.
    """

    def __init__(self, loop: Loop, descriptor: int, letter: bytes, news: Callable[[], None]) -> None:
        self.overwrites = False
        self._loop = loop
        self._news = news
        self.descriptor = descriptor
        self.letter = letter
        self.kept = Kept()
        self.sent = 0
        self.told_end = False
        os.set_blocking(descriptor, False)
        self.listen()

    def listen(self) -> None:
        """Read, or not, as there is room."""
        if self.kept.ended:
            return
        room = len(self.kept.data) < KEPT or self.overwrites
        events = selectors.EVENT_READ if room else 0
        self._loop.watch(self.descriptor, events, self._read)

    def _read(self, _: int) -> None:
        # A terminal gives a few KiB at a time: more of them in a frame, and all on the way have less to do.
        enough = len(self.kept.data) + CHUNK
        ended = False
        while len(self.kept.data) < enough and not ended:
            try:
                data = os.read(self.descriptor, CHUNK)
            except BlockingIOError:
                break
            except OSError:
                data = b""  # EIO is how a terminal ends
            self.kept.data += data
            ended = not data
        if self.overwrites and len(self.kept.data) > KEPT:
            self.kept.drop_to(self.kept.end - KEPT)
            self.sent = max(self.sent, self.kept.base)
        if ended:
            self.end()
        else:
            self.listen()
            self._news()

    def acknowledge(self, offset: int) -> None:
        """What comes before an offset has arrived."""
        self.kept.drop_to(min(offset, self.sent))
        self.listen()

    def end(self) -> None:
        """Nothing more comes."""
        if not self.kept.ended:
            self._loop.watch(self.descriptor, 0, self._read)
            self.kept.ended = True
            self._news()

    def go_back(self, offset: int | None) -> None:
        """Send from an offset on, or from the first byte that is kept."""
        wanted = self.kept.base if offset is None else offset
        self.sent = min(max(wanted, self.kept.base), self.kept.end)
        self.told_end = False
        self.listen()

    def next_frame(self) -> bytes:
        """Return the next frame for the connection, or nothing."""
        start = self.sent - self.kept.base
        data = self.kept.data[start : start + CHUNK]
        if not data:
            if not self.kept.ended or self.told_end:
                return b""
            self.told_end = True
            return encode(b"Z", b"1" if self.letter == b"O" else b"2")
        frame = encode(self.letter, struct.pack(">Q", self.sent) + data)
        self.sent += len(data)
        return frame
