"""Forwarding of the client's SSH agent, granted to one session and withdrawn with it.

The library forwards an agent for a whole connection, by the path of a socket on this host. We need it for
one session, from an agent that is at the far end of the supervisor's own protocol, and also for a shell that
was started before anybody asked. So the guest's sshd listens at a socket there, and each connection to it is
answered from the session's grant. No socket exists on the host. Whoever connects after the grant's end finds
nobody.

Source: PROTOCOL of OpenSSH, section 2.4.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

import anyio
import asyncssh

MAX_CONVERSATIONS = 32
"""Connections to one agent at the same time. The guest is hostile; each costs a channel up to the client."""

_CHUNK = 64 * 1024


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
    """The right of one session to reach one agent."""

    def __init__(self, open_agent: OpenAgent) -> None:
        self._open_agent = open_agent
        self._conversations: set[anyio.CancelScope] = set()
        self._revoked = False

    def accept(self) -> "Callable[[asyncssh.SSHReader[bytes], asyncssh.SSHWriter[bytes]], Awaitable[None]]":
        """Return what serves one more connection.

        Raises:
            asyncssh.ChannelOpenError: The right was withdrawn, or there are too many; the guest is refused.
        """
        if self._revoked or len(self._conversations) >= MAX_CONVERSATIONS:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_RESOURCE_SHORTAGE, "no more connections")
        return self.serve

    def revoke(self) -> None:
        """End all conversations and allow no more. May be called twice; never waits."""
        self._revoked = True
        for scope in list(self._conversations):
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
                # Others may have been accepted in the same moment.
                if self._revoked or len(self._conversations) > MAX_CONVERSATIONS:
                    return
                await _converse(self._open_agent, from_guest, to_guest)
        except Exception:  # noqa: BLE001, S110 - an agent that fails is an end for the guest, not for the link
            pass
        finally:
            self._conversations.discard(scope)
            to_guest.close()


class AgentListener:
    """A socket in the guest behind which an agent is. Whoever connects after `close` finds nobody."""

    def __init__(self, grant: AgentGrant, listener: asyncssh.SSHListener) -> None:
        self._grant = grant
        self._listener: asyncssh.SSHListener | None = listener

    def close(self) -> None:
        """Withdraw the agent, also from those who talk to it now. May be called twice; never waits."""
        self._grant.revoke()
        listener, self._listener = self._listener, None
        if listener is not None:  # the library asks the guest each time, for which a second time is an error
            listener.close()


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
