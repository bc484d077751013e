"""Forwarding of the client's SSH agent, granted to one process and withdrawn with it.

The library forwards an agent for a whole connection, by the path of a socket on this host. We need it for
one process, from an agent that is at the far end of the supervisor's own protocol, and only as long as that
process lives. So two things are done by hand, both in this module: the request ``auth-agent-req@openssh.com``
is sent on the process's own channel, and channels of the type ``auth-agent@openssh.com`` that the guest
opens are answered from the newest live grant, or refused when there is none. No socket exists on the host.

Not to be confused with the guest's own socket: sshd makes one for the connection and leaves it there until
the connection ends, but whoever connects to it after the grant's end finds nobody.

Source: PROTOCOL and PROTOCOL.agent of OpenSSH.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

import anyio
import asyncssh
from asyncssh.constants import OPEN_ADMINISTRATIVELY_PROHIBITED
from asyncssh.packet import SSHPacket
from asyncssh.stream import SSHUNIXStreamSession

MAX_CONVERSATIONS = 32
"""Connections to one agent at the same time. The guest is hostile; each costs a channel up to the client."""

_CHUNK = 64 * 1024
_OPEN_HANDLER = "_process_auth_agent_at_openssh_dot_com_open"


class ByteStream(Protocol):
    """One connection to an SSH agent."""

    async def receive(self) -> bytes:
        """Return the next bytes, empty at the end."""
        ...

    async def send(self, data: bytes) -> None:
        """Send bytes; return when there is room for more."""
        ...

    async def aclose(self) -> None:
        """End the connection. May be called twice."""
        ...


OpenAgent = Callable[[], Awaitable[ByteStream]]
"""Opens one connection to the client's SSH agent. What it raises is taken as: the agent is not there."""


class AgentGrant:
    """The right of one process to reach one agent."""

    def __init__(self, open_agent: OpenAgent, forget: Callable[["AgentGrant"], None]) -> None:
        self._open_agent = open_agent
        self._forget = forget
        self._conversations: set[anyio.CancelScope] = set()
        self._revoked = False

    def request_on(self, channel: "asyncssh.SSHClientChannel[bytes]") -> None:
        """Ask the guest's sshd for an agent socket. To be called before the process is started."""
        # No reply is asked for: an sshd that forbids it leaves the process without SSH_AUTH_SOCK.
        channel._send_request(b"auth-agent-req@openssh.com")  # noqa: SLF001 - see the module's text

    def has_room(self) -> bool:
        """Tell whether one more conversation may begin."""
        return not self._revoked and len(self._conversations) < MAX_CONVERSATIONS

    def revoke(self) -> None:
        """End all conversations and allow no more. May be called twice; never waits."""
        if self._revoked:
            return
        self._revoked = True
        self._forget(self)
        for scope in self._conversations:
            scope.cancel()

    async def serve(
        self,
        from_guest: "asyncssh.SSHReader[bytes]",
        to_guest: "asyncssh.SSHWriter[bytes]",
    ) -> None:
        """Carry one conversation between the guest and the agent until either side ends it.

        Runs as a task of the connection, which cancels nothing: `revoke` and the end of the channel end it.
        """
        scope = anyio.CancelScope()
        self._conversations.add(scope)
        try:
            with scope:
                if self._revoked:
                    return
                await _converse(self._open_agent, from_guest, to_guest)
        except Exception:  # noqa: BLE001, S110 - an agent that fails is an end for the guest, not for the link
            pass
        finally:
            self._conversations.discard(scope)
            to_guest.close()


class AgentForwarding:
    """The grants of one connection."""

    def __init__(self, connection: asyncssh.SSHClientConnection) -> None:
        self._connection = connection
        self._grants: list[AgentGrant] = []
        if not hasattr(connection, _OPEN_HANDLER):  # pragma: no cover - an asyncssh that was reshaped
            raise RuntimeError(f"this asyncssh ({asyncssh.__version__}) has no {_OPEN_HANDLER}")
        setattr(connection, _OPEN_HANDLER, self._conversation_wanted)

    def grant(self, open_agent: OpenAgent) -> AgentGrant:
        """Allow conversations with an agent until the grant is revoked."""
        grant = AgentGrant(open_agent, self._grants.remove)
        self._grants.append(grant)
        return grant

    def _conversation_wanted(
        self, packet: SSHPacket
    ) -> tuple["asyncssh.SSHUNIXChannel[bytes]", "SSHUNIXStreamSession[bytes]"]:
        packet.check_end()
        for grant in reversed(self._grants):
            if grant.has_room():
                channel = self._connection.create_unix_channel()
                return channel, SSHUNIXStreamSession(grant.serve)
        raise asyncssh.ChannelOpenError(OPEN_ADMINISTRATIVELY_PROHIBITED, "no agent is forwarded")


async def _converse(
    open_agent: OpenAgent,
    from_guest: "asyncssh.SSHReader[bytes]",
    to_guest: "asyncssh.SSHWriter[bytes]",
) -> None:
    agent = await open_agent()
    try:
        async with anyio.create_task_group() as directions:

            async def to_agent() -> None:
                while data := await from_guest.read(_CHUNK):
                    await agent.send(data)
                directions.cancel_scope.cancel()

            directions.start_soon(to_agent)
            while data := await agent.receive():
                to_guest.write(data)
                await to_guest.drain()
            directions.cancel_scope.cancel()
    finally:
        with anyio.move_on_after(5, shield=True):
            await agent.aclose()
