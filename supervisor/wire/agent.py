"""One channel to the SSH agent at the client's side, as a byte stream."""

from collections.abc import Callable

import anyio
from anyio.abc import ByteStream

from claude_vm.supervisor.wire.flow import Inflow, Outbox, Window
from claude_vm.supervisor.wire.framing import encode_numbers
from claude_vm.supervisor.wire.messages import AGENT_WINDOW, MAX_DATA, FrameType


class AgentStream(ByteStream):
    """A channel to the client's SSH agent. Made by `Client.open_agent`.

    Bounded in both directions: who does not receive stops the agent, who sends too much waits. It ends when
    the agent, or the client, closes it; then what has come can still be received.
    """

    def __init__(self, channel: int, outbox: Outbox, forget: Callable[[int], None]) -> None:
        self._channel = channel
        self._outbox = outbox
        self._forget = forget
        self._inflow = Inflow(AGENT_WINDOW)
        self._window = Window(AGENT_WINDOW)
        self._closed = False

    async def receive(self, max_bytes: int = MAX_DATA) -> bytes:
        """Return 1 to `max_bytes` bytes; the former ones count as passed on.

        Raises:
            anyio.EndOfStream: The other side closed it.
            anyio.ClosedResourceError: We closed it.
        """
        if self._closed:
            raise anyio.ClosedResourceError
        if count := self._inflow.take_acknowledged():
            self._outbox.put(encode_numbers(FrameType.AGENT_ACK, self._channel, count))
        data = await self._inflow.receive(max_bytes)
        if not data:
            raise anyio.EndOfStream
        return data

    async def send(self, item: bytes) -> None:
        """Send bytes, as fast as the agent takes them.

        Raises:
            anyio.BrokenResourceError: The other side closed it.
            anyio.ClosedResourceError: We closed it.
        """
        rest = memoryview(item)
        while rest:
            count = await self._window.take(min(len(rest), MAX_DATA))
            self._outbox.put(encode_numbers(FrameType.AGENT_DATA, self._channel, data=bytes(rest[:count])))
            rest = rest[count:]

    async def send_eof(self) -> None:
        """Close it: an agent has no use for a half-closed connection."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close it in both directions. Never waits; repeating it is fine."""
        if self._closed:
            return
        self._closed = True
        self._inflow.end()
        if not self._window.closed:
            self._outbox.put(encode_numbers(FrameType.AGENT_CLOSE, self._channel))
        self._window.close(anyio.ClosedResourceError())
        self._forget(self._channel)

    # What the connection's reader calls.

    def put_nowait(self, data: bytes) -> None:
        """Take what the agent said.

        Raises:
            ProtocolError: More than the window allows.
        """
        if not self._closed:
            self._inflow.put(data)

    def acknowledge_nowait(self, count: int) -> None:
        """Take the client's acknowledgement.

        Raises:
            ProtocolError: More than was sent.
        """
        self._window.give(count)

    def end_nowait(self) -> None:
        """Note that the other side closed it."""
        self._inflow.end()
        self._window.close(anyio.BrokenResourceError())
        self._forget(self._channel)
