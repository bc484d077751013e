"""How often the supervisor tells the guest's holder what whoever reads has taken."""

import struct

import anyio
import pytest

from claude_vm.supervisor.ssh.stream import ACKNOWLEDGE, ACKNOWLEDGE_S, Stream

pytestmark = pytest.mark.anyio
PIECE = 4096


class Channel:
    """Takes the place of the library's channel, and keeps the offsets that are acknowledged."""

    def __init__(self):
        self.acknowledged = []

    def write(self, data):
        assert data[:1] == b"A"
        self.acknowledged.append(struct.unpack(">QQ", data[5:])[0])

    def is_closing(self):
        return False

    def abort(self):
        pass

    def get_write_buffer_size(self):
        return 0


@pytest.fixture
def stream():
    made = Stream()
    made.connection_made(Channel())
    return made


def told(stream):
    return stream.channel.acknowledged


async def read(stream, count):
    """Let that many bytes come in small pieces, each read before the next one comes."""
    begin = stream.position(0)
    for offset in range(begin, begin + count, PIECE):
        payload = struct.pack(">Q", offset) + b"x" * PIECE
        stream.data_received(struct.pack(">cI", b"O", len(payload)) + payload, None)
        assert len(await stream.read(0, PIECE)) == PIECE


async def take(stream, count):
    """Read so many bytes, and ask for more, which says that they were taken."""
    await read(stream, count)
    with anyio.move_on_after(0):
        await stream.read(0, PIECE)


async def test_a_flood_is_not_acknowledged_piece_by_piece(stream):
    begun = anyio.current_time()
    await take(stream, 8 * ACKNOWLEDGE)
    timers = (anyio.current_time() - begun) / ACKNOWLEDGE_S
    assert 8 <= len(told(stream)) <= 8 + timers + 1
    assert told(stream) == sorted(set(told(stream)))


async def test_a_little_is_acknowledged_soon_and_once(stream):
    await take(stream, 2 * PIECE)
    assert told(stream) == []
    await anyio.sleep(5 * ACKNOWLEDGE_S)
    assert told(stream) == [2 * PIECE]
    await take(stream, PIECE)
    await anyio.sleep(5 * ACKNOWLEDGE_S)
    assert told(stream) == [2 * PIECE, 3 * PIECE]


async def test_what_was_only_read_is_not_acknowledged(stream):
    await read(stream, 2 * PIECE)
    await anyio.sleep(3 * ACKNOWLEDGE_S)
    assert told(stream) == [PIECE]
    stream.close()
    assert told(stream) == [PIECE]


async def test_what_was_taken_is_acknowledged_before_the_stream_is_closed(stream):
    await take(stream, PIECE)
    stream.close()
    assert told(stream) == [PIECE]
    await anyio.sleep(3 * ACKNOWLEDGE_S)
    assert told(stream) == [PIECE]


async def test_nothing_is_told_on_a_connection_that_is_lost_and_nothing_tries(stream, monkeypatch):
    tried = []
    monkeypatch.setattr(stream, "_acknowledge", lambda: tried.append(1))
    await read(stream, PIECE)
    payload = struct.pack(">Q", PIECE) + b"unread"
    stream.data_received(struct.pack(">cI", b"O", len(payload)) + payload, None)
    stream.connection_lost(ConnectionResetError())
    assert await stream.read(0, PIECE) == b"unread"
    await anyio.sleep(3 * ACKNOWLEDGE_S)
    assert (tried, told(stream)) == ([], [])
