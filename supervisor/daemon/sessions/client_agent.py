"""The SSH agent at the client's side: whether there is one."""

import anyio

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
