"""The SSH agent at the client's side: whether there is one, and as the SSH side wants it."""

import anyio
import anyio.abc

from claude_vm.supervisor.ssh.agent import OpenAgent
from claude_vm.supervisor.ssh.agent_messages import QUERY, Messages
from claude_vm.supervisor.ssh.errors import AgentProtocolError
from claude_vm.supervisor.wire.connected_client import Client
from claude_vm.supervisor.wire.errors import AgentRefusedError

ANSWER_S = 2.0
"""How long an agent may take to answer, in seconds, until it is taken for a slow one. A dead one says so."""


async def answers(client: Client) -> bool:
    """Tell whether an agent is there, by a question to which every agent has some answer."""
    said = Messages()
    try:
        async with await client.open_agent() as stream:
            await stream.send(QUERY)
            with anyio.move_on_after(ANSWER_S):
                while not said.take(await stream.receive()):
                    pass
    except (AgentProtocolError, AgentRefusedError, anyio.EndOfStream, anyio.BrokenResourceError):
        return False
    return True


def agent_of(client: Client) -> OpenAgent:
    """Return what opens connections to the client's agent."""

    async def open_agent() -> _AgentConnection:
        return _AgentConnection(await client.open_agent())

    return open_agent


class _AgentConnection:
    """A connection to an agent, whose end is an empty read."""

    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        self._stream = stream
        self.send = stream.send
        self.aclose = stream.aclose

    async def receive(self) -> bytes:
        """Return the next bytes, empty at the end."""
        try:
            return await self._stream.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            return b""
