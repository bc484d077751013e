"""Channels from the daemon to our SSH agent, opened when the daemon asks for them (``-A``)."""

import contextlib
import os
import socket
from collections.abc import Callable

from claude_vm.supervisor.cli.polling import READ, WRITE
from claude_vm.supervisor.wire.errors import ProtocolError
from claude_vm.supervisor.wire.framing import encode_numbers
from claude_vm.supervisor.wire.messages import AGENT_WINDOW, MAX_AGENTS, MAX_DATA, FrameType


class _Channel:
    """One connection to the agent, what waits for it, and how much it may still send."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.waiting = bytearray()
        self.credit = AGENT_WINDOW


class Agents:
    """All channels of one session. `put` sends a frame to the daemon."""

    def __init__(self, put: Callable[[bytes], None]) -> None:
        self._put = put
        self._channels: dict[int, _Channel] = {}

    def wanted(self) -> dict[int, int]:
        """Return what to poll for."""
        wanted = {}
        for channel in self._channels.values():
            events = (READ if channel.credit else 0) | (WRITE if channel.waiting else 0)
            if events:
                wanted[channel.socket.fileno()] = events
        return wanted

    def take(self, kind: FrameType, number: int, data: bytes) -> None:
        """Take a frame of the daemon; `data` is what follows the channel's number.

        Raises:
            ProtocolError: The daemon exceeds a bound.
        """
        if kind is FrameType.AGENT_OPEN:
            self._open(number)
            return
        channel = self._channels.get(number)
        if channel is None:
            return  # crossed with our closing it
        if kind is FrameType.AGENT_CLOSE:
            self._forget(number)
        elif kind is FrameType.AGENT_ACK:
            channel.credit += int.from_bytes(data, "big")
            if channel.credit > AGENT_WINDOW:
                raise ProtocolError("more bytes for the SSH agent are acknowledged than were sent")
        else:
            channel.waiting += data
            if len(channel.waiting) > AGENT_WINDOW:
                raise ProtocolError("more bytes for the SSH agent than the window allows")

    def relay(self, ready: dict[int, int]) -> None:
        """Read and write what can be."""
        for number, channel in list(self._channels.items()):
            events = ready.get(channel.socket.fileno(), 0)
            try:
                if events & WRITE and channel.waiting:
                    self._write(number, channel)
                if events & READ and channel.credit:
                    self._read(number, channel)
            except BlockingIOError:
                continue
            except OSError:
                self._close(number)

    def close(self) -> None:
        """Close all channels."""
        for number in list(self._channels):
            self._forget(number)

    def _open(self, number: int) -> None:
        if len(self._channels) >= MAX_AGENTS:
            raise ProtocolError("more channels to the SSH agent than allowed")
        address = os.environ.get("SSH_AUTH_SOCK")
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if not address:
                raise FileNotFoundError
            connection.setblocking(False)  # an agent that stands still must not stop us
            connection.connect(address)
        except OSError:
            connection.close()
            self._put(encode_numbers(FrameType.AGENT_CLOSE, number))
            return
        self._channels[number] = _Channel(connection)

    def _write(self, number: int, channel: _Channel) -> None:
        with memoryview(channel.waiting) as view:
            count = channel.socket.send(view)
        del channel.waiting[:count]
        self._put(encode_numbers(FrameType.AGENT_ACK, number, count))

    def _read(self, number: int, channel: _Channel) -> None:
        data = channel.socket.recv(min(channel.credit, MAX_DATA))
        if not data:
            self._close(number)
            return
        channel.credit -= len(data)
        self._put(encode_numbers(FrameType.AGENT_DATA, number, data=data))

    def _close(self, number: int) -> None:
        self._put(encode_numbers(FrameType.AGENT_CLOSE, number))
        self._forget(number)

    def _forget(self, number: int) -> None:
        channel = self._channels.pop(number)
        with contextlib.suppress(OSError):
            channel.socket.close()
