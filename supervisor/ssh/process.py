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
    """What came on one stream and was not read yet."""

    def __init__(self) -> None:
        self.chunks: deque[bytes] = deque()
        self.news = asyncio.Event()

    def add(self, data: bytes) -> None:
        """Append, joining small chunks, whose overhead would be more than what they hold."""
        if self.chunks and len(self.chunks[-1]) + len(data) <= _SMALL:
            self.chunks[-1] += data
        else:
            self.chunks.append(data)
        self.news.set()

    def take(self, limit: int) -> bytes:
        """Remove up to `limit` bytes, joining small chunks."""
        taken: list[bytes] = []
        room = limit
        while self.chunks and room:
            chunk = self.chunks.popleft()
            if len(chunk) > room:
                self.chunks.appendleft(chunk[room:])
                chunk = chunk[:room]
            taken.append(chunk)
            room -= len(chunk)
        return taken[0] if len(taken) == 1 else b"".join(taken)
