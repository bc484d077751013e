"""The queue of frames over real sockets: what fits goes at once, and never half a frame."""

import socket

import anyio
import pytest
from anyio.abc import UNIXSocketStream

from claude_vm.supervisor.wire.flow import Outbox

pytestmark = pytest.mark.anyio

LARGE = b"a" * (4 << 20)


@pytest.fixture
async def ends():
    """An outbox, its stream, and the socket at the other end."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with theirs:
        async with await UNIXSocketStream.from_socket(ours) as stream:
            yield Outbox(stream), theirs


async def read(theirs, size):
    data = b""
    with anyio.fail_after(20):
        while len(data) < size:
            try:
                data += theirs.recv(1 << 16)
            except BlockingIOError:
                await anyio.sleep(0.001)
    return data


async def test_what_the_connection_takes_is_there_before_any_task_has_run(ends):
    outbox, theirs = ends
    outbox.put(b"one")
    outbox.put(b"two")
    assert theirs.recv(100) == b"onetwo"


async def test_the_rest_of_a_frame_comes_before_the_next_one(ends):
    outbox, theirs = ends
    for frame in (LARGE, b"b", b"c"):
        outbox.put(frame)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(outbox.run)
        assert await read(theirs, len(LARGE) + 2) == LARGE + b"bc"
        await outbox.wait_empty()
        outbox.put(b"d")
        assert theirs.recv(100) == b"d"
        tasks.cancel_scope.cancel()


async def test_a_frame_that_has_begun_is_ended_before_the_last_words(ends):
    outbox, theirs = ends
    for frame in (LARGE, b"b", b"c"):
        outbox.put(frame)
    outbox.cut_off_with(b"the end")
    outbox.put(b"d")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(outbox.run)
        assert await read(theirs, len(LARGE) + 7) == LARGE + b"the end"
        await outbox.wait_empty()
        tasks.cancel_scope.cancel()


async def test_a_connection_whose_other_end_is_gone_takes_everything_and_nobody_waits(ends):
    outbox, theirs = ends
    theirs.close()
    outbox.put(b"one")
    with anyio.fail_after(5):
        await outbox.run()
        outbox.put(b"two")
        await outbox.wait_empty()
        await outbox.wait_for_room()
