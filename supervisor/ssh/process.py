"""What a process in a guest has: a terminal, streams with back-pressure both ways, and an end."""

import asyncio
from collections import deque

import msgspec

WINDOW = 2 * 1024 * 1024
"""Bytes that a guest may send ahead on one channel: the most that waits in the library for a slow reader."""

MAX_PACKET = 64 * 1024
"""Largest packet that we accept on a channel, in bytes. Fewer and larger packets are cheaper here."""

_SMALL = 1024


class Pty(msgspec.Struct, frozen=True):
    """The terminal that a process shall have.

    `rows` and `columns` count characters, `width` and `height` pixels (0: unknown).
    """

    term: str
    rows: int
    columns: int
    width: int = 0
    height: int = 0


class ReceivedOutput:
    """What came on one stream and was not read yet.

    Offsets count what the process has written: `told` is behind what came, `read` behind what was read. Of
    what lies between them `waiting` bytes are here; the others never came.
    """

    def __init__(self) -> None:
        self.news = asyncio.Event()
        self.told = 0
        self.read = 0
        self.waiting = 0
        self._chunks: deque[bytes] = deque()
        self._gaps: deque[tuple[int, int]] = deque()  # where something is missing, and where it goes on

    def skip(self, offset: int) -> int:
        """Go on at an offset, if that is behind what came; return how many bytes are missing."""
        missing = max(offset - self.told, 0)
        if missing:
            self._gaps.append((self.told, offset))
            self.told = offset
        return missing

    def add(self, data: bytes) -> None:
        """Append, joining small chunks, whose overhead would be more than what they hold."""
        if self._chunks and len(self._chunks[-1]) + len(data) <= _SMALL:
            self._chunks[-1] += data
        else:
            self._chunks.append(data)
        self.told += len(data)
        self.waiting += len(data)
        self.news.set()

    def take(self, limit: int) -> bytes:
        """Remove up to `limit` bytes between which nothing is missing, joining small chunks."""
        while self._gaps and self._gaps[0][0] == self.read:
            self.read = self._gaps.popleft()[1]
        taken: list[bytes] = []
        room = min(limit, self._gaps[0][0] - self.read) if self._gaps else limit
        while self._chunks and room:
            chunk = self._chunks.popleft()
            if len(chunk) > room:
                self._chunks.appendleft(chunk[room:])
                chunk = chunk[:room]
            taken.append(chunk)
            room -= len(chunk)
        data = taken[0] if len(taken) == 1 else b"".join(taken)
        self.read += len(data)
        self.waiting -= len(data)
        return data
