"""Forwarding of the client's SSH agent, granted to one session and withdrawn with it.

The library forwards an agent for a whole connection, by the path of a socket on this host. We need it for
one session, from an agent that is at the far end of the supervisor's own protocol, and also for a shell that
was started before anybody asked. So the guest's sshd listens at a socket there, and each connection to it is
answered from the session's grant. No socket exists on the host. Whoever connects after the grant's end finds
nobody.

The guest is hostile, and an agent can do more than sign: `agent_messages` says what is passed on. The rest is
answered here and does not reach the agent. One request is with the agent at a time, so the answers come in
their order. An agent that is not there refuses everything: a program of the guest whose agent hangs up on it
may die without a word.

Source: PROTOCOL of OpenSSH, section 2.4.
"""

from collections.abc import Awaitable, Callable

import anyio
import asyncssh
from anyio.abc import ByteStream

from claude_vm.supervisor.ssh.agent_messages import FAILURE, Binding, Messages, Rights, forwarding
from claude_vm.supervisor.ssh.errors import AgentProtocolError

MAX_CONVERSATIONS = 32
"""Connections to one agent at the same time. The guest is hostile; each costs a channel up to the client."""

_CHUNK = 64 * 1024


OpenAgent = Callable[[], Awaitable[ByteStream]]
"""Opens one connection to the client's SSH agent. What it raises is taken as: the agent is not there."""


class AgentGrant:
    """The right of one session to reach one agent, through the connection that `binding` is of."""

    def __init__(self, open_agent: OpenAgent, binding: Binding) -> None:
        self._open_agent = open_agent
        self._binding = binding
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
                await self._converse(from_guest, to_guest)
        except Exception:  # noqa: BLE001, S110 - an agent that fails is an end for the guest, not for the link
            pass
        finally:
            self._conversations.discard(scope)
            to_guest.close()

    async def _converse(
        self, from_guest: "asyncssh.SSHReader[bytes]", to_guest: "asyncssh.SSHWriter[bytes]"
    ) -> None:
        requests = Messages()
        rights = Rights()
        agent = _Agent(self._open_agent, forwarding(self._binding))
        add, waiting = anyio.create_memory_object_stream[bytes](0)
        try:
            async with anyio.create_task_group() as directions:

                async def listen() -> None:
                    try:
                        while data := await from_guest.read(_CHUNK):
                            for message in requests.take(data):
                                await add.send(message)
                    except AgentProtocolError:
                        pass
                    directions.cancel_scope.cancel()

                directions.start_soon(listen)
                async for message in waiting:
                    to_guest.write(await agent.ask(message) if rights.allow(message) else FAILURE)
                    await to_guest.drain()
        finally:
            add.close()
            waiting.close()
            with anyio.move_on_after(5, shield=True):
                await agent.aclose()


class _Agent:
    """The agent of one conversation. One that is not there, or ends, says no to everything."""

    def __init__(self, open_agent: OpenAgent, greeting: bytes) -> None:
        self._open = open_agent
        self._greeting = greeting
        self._stream: ByteStream | None = None
        self._answers = Messages()
        self._ended = False

    async def ask(self, message: bytes) -> bytes:
        """Return the answer to a message, both whole."""
        if self._ended:
            return FAILURE
        try:
            if self._stream is None:
                self._stream = await self._open()
                # An agent that knows no such message says so, and is asked all the same.
                await self._exchange(self._stream, self._greeting)
            return await self._exchange(self._stream, message)
        except Exception:  # noqa: BLE001 - whatever it is, there is no agent
            if self._stream is not None:  # otherwise there may be one the next time
                await self.aclose()
        return FAILURE

    async def _exchange(self, stream: ByteStream, message: bytes) -> bytes:
        """Return the agent's answer.

        Raises:
            AgentProtocolError: It ended, or does not talk the protocol.
        """
        await stream.send(message)
        answers: list[bytes] = []
        while not answers:
            try:
                answers = self._answers.take(await stream.receive())
            except anyio.EndOfStream as error:
                raise AgentProtocolError("the SSH agent hung up") from error
        if len(answers) > 1:
            raise AgentProtocolError("the SSH agent answers more than it was asked")
        return answers[0]

    async def aclose(self) -> None:
        """End it; nothing more is asked. May be called twice."""
        self._ended = True
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.aclose()


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
