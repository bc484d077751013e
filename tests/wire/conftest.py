import contextlib
import math

import anyio
import pytest
from anyio.abc import ByteStream
from hypothesis import settings

from claude_vm.supervisor.wire.framing import FrameReader, encode_json
from claude_vm.supervisor.wire.messages import FROM_SERVER, PROTOCOL, FrameType
from claude_vm.supervisor.wire.server import serve_connection
from claude_vm.supervisor.wire.version import VERSION

# The checkout may belong to another user: nothing is kept in it.
settings.register_profile("no-database", database=None)
settings.load_profile("no-database")


class MemoryStream(ByteStream):
    """One end of a connection in memory that holds `capacity` chunks each way."""

    def __init__(self, outgoing, incoming):
        self._outgoing = outgoing
        self._incoming = incoming
        self._rest = b""

    async def send(self, item):
        await self._outgoing.send(bytes(item))

    async def receive(self, max_bytes=65536):
        if not self._rest:
            self._rest = await self._incoming.receive()
        data, self._rest = self._rest[:max_bytes], self._rest[max_bytes:]
        return data

    async def send_eof(self):
        await self._outgoing.aclose()

    async def aclose(self):
        await self._outgoing.aclose()
        await self._incoming.aclose()


def memory_pair(capacity=math.inf):
    here_send, there_receive = anyio.create_memory_object_stream(capacity)
    there_send, here_receive = anyio.create_memory_object_stream(capacity)
    return MemoryStream(here_send, here_receive), MemoryStream(there_send, there_receive)


class ScriptedClient:
    """The client's side, frame by frame."""

    def __init__(self, stream):
        self.stream = stream
        self.reader = FrameReader(FROM_SERVER)
        self.frames = []

    async def begin(self, *, protocol=PROTOCOL, version=VERSION, **invocation):
        message = {"argv": [], "cwd": "/", "env": {}, **invocation}
        hello = {"protocol": protocol, "version": version, "pid": 1}
        await self.send(encode_json(FrameType.HELLO, hello), encode_json(FrameType.INVOKE, message))

    async def send(self, *frames):
        await self.stream.send(b"".join(frames))

    async def next(self):
        """The next frame, or None at the end."""
        while not self.frames:
            try:
                self.frames += self.reader.feed(await self.stream.receive(65536))
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                return None
        return self.frames.pop(0)

    async def expect(self, kind):
        """The next frame's payload; its type must be `kind`."""
        frame = await self.next()
        assert frame is not None, f"the connection ended before {kind.name}"
        assert frame[0] is kind, frame
        return frame[1]

    async def rest(self):
        """All frames until the end."""
        frames = []
        while (frame := await self.next()) is not None:
            frames.append(frame)
        return frames


@pytest.fixture
def serving():
    """``async with serving(handler) as client``: a scripted client of a served connection in memory."""

    @contextlib.asynccontextmanager
    async def serving(handler, *, begin=True, capacity=math.inf, **options):
        near, far = memory_pair(capacity)
        async with anyio.create_task_group() as tasks:
            scope = anyio.CancelScope()

            async def serve():
                with scope:
                    await serve_connection(far, handler, **options)

            tasks.start_soon(serve)
            client = ScriptedClient(near)
            client.close_server = scope.cancel
            if begin:
                await client.begin()
                await client.expect(FrameType.HELLO)
            try:
                yield client
            finally:
                await near.aclose()

    return serving
