"""One SSH connection to one guest. Nothing of this host's own SSH configuration or agent has a part in it."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator

import anyio
import asyncssh

from claude_vm.drivers.api import Access
from claude_vm.supervisor.ssh.agent import AgentGrant, AgentListener, OpenAgent
from claude_vm.supervisor.ssh.errors import (
    AuthenticationError,
    ChannelRefusedError,
    ConnectError,
    ConnectTimeoutError,
    HostKeyError,
    LinkLostError,
)
from claude_vm.supervisor.ssh.owner import ConnectionOwner
from claude_vm.supervisor.ssh.process import MAX_PACKET, WINDOW

KEEPALIVE_S = 15.0
"""A silent connection is asked after this time, and given up after four questions without an answer."""

KEEPALIVE_COUNT = 4

SMALL_WINDOW = 16 * 1024
"""Bytes that the guest may send ahead where it has little to say."""

PORT_WINDOW = 256 * 1024
"""Bytes that the guest may send ahead on one connection to a published port. There may be many of them."""

CLOSE_S = 2.0
"""How long closing may wait for the other side before the connection is cut."""

# curve25519 first: under emulation it is faster than the hybrid with sntrup761, and ciphers with hardware
# support come before chacha20, which the library computes in two passes.
KEY_EXCHANGES = ("curve25519-sha256", "curve25519-sha256@libssh.org", "ecdh-sha2-nistp256")
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com")

AT_ONCE = 32 * 1024
"""Bytes that the host's kernel keeps of one connection. (Linux doubles it.)"""

_NEVER = 1 << 30


class Link:
    """An open connection. Made by `connect`; who has it closes it."""

    def __init__(self, connection: asyncssh.SSHClientConnection, owner: ConnectionOwner, holder: str) -> None:
        self._connection = connection
        self._owner = owner
        self._takes = asyncio.Event()
        self._takes.set()
        # The library ignores what its transport says here, so what is written waits in memory, however much.
        connection.pause_writing = self._takes.clear  # type: ignore[method-assign]
        connection.resume_writing = self._takes.set  # type: ignore[method-assign]
        # Nor does it tell when it has heard anything.
        self._receive = connection.data_received
        self._heard_at = asyncio.get_running_loop().time()
        self._news = asyncio.Event()
        connection.data_received = self._hear  # type: ignore[method-assign]
        self._holder = holder

    async def open_holder(self, make_session: Callable[[], "asyncssh.SSHUNIXSession[bytes]"]) -> None:
        """Connect to the guest's holder; what it says goes to the session that is made.

        Raises:
            ChannelRefusedError: Nobody listens there, or the guest opens no more channels.
            LinkLostError: The connection is gone.
        """
        with self._refusing("the guest opens no stream"):
            await self._connection.create_unix_connection(
                make_session, self._holder, encoding=None, window=WINDOW, max_pktsize=MAX_PACKET
            )

    async def open_dialogue(self) -> "tuple[asyncssh.SSHReader[bytes], asyncssh.SSHWriter[bytes]]":
        """Connect to the guest's holder for what needs no more than a small window.

        Raises:
            ChannelRefusedError: Nobody listens there, or the guest opens no more channels.
            LinkLostError: The connection is gone.
        """
        with self._refusing("the guest opens no stream"):
            return await self._connection.open_unix_connection(
                self._holder, encoding=None, window=SMALL_WINDOW, max_pktsize=SMALL_WINDOW
            )

    async def open_tcp(self, port: int) -> "tuple[asyncssh.SSHReader[bytes], asyncssh.SSHWriter[bytes]]":
        """Connect to a TCP port of the guest, at whichever address of its loopback somebody listens.

        A cancelled call may leave a channel, which ends with the connection.

        Raises:
            ChannelRefusedError: Nobody listens there, or the guest opens no more channels.
            LinkLostError: The connection is gone.
        """
        try:
            return await self._open_tcp("127.0.0.1", port)
        except ChannelRefusedError:
            with contextlib.suppress(ChannelRefusedError):
                return await self._open_tcp("::1", port)
            raise

    async def _open_tcp(
        self, address: str, port: int
    ) -> "tuple[asyncssh.SSHReader[bytes], asyncssh.SSHWriter[bytes]]":
        with self._refusing(f"nobody listens at {port} in the guest"):
            return await self._connection.open_connection(
                address, port, encoding=None, window=PORT_WINDOW, max_pktsize=MAX_PACKET
            )

    async def until_it_takes(self) -> None:
        """Wait until the connection has passed on most of what was written.

        Whoever sends much waits here before each piece. A channel's window bounds nothing: the guest sets it.
        On a connection that is lost this may wait for ever.
        """
        while not self._takes.is_set():
            await self._takes.wait()

    async def listen_for_agent(self, path: str, open_agent: OpenAgent) -> AgentListener:
        """Let the guest reach an agent at a unix socket there, until the listener is closed.

        The agent is told that this connection forwards it; of the guest's requests it sees those that
        `agent_messages` allows.

        Raises:
            ChannelRefusedError: The guest does not listen.
            LinkLostError: The connection is gone.
        """
        if self._owner.binding is None:  # pragma: no cover - the library verified the host key otherwise
            raise ChannelRefusedError("the SSH agent can't be told that it is forwarded")
        grant = AgentGrant(open_agent, self._owner.binding)
        try:
            with self._refusing("the guest forwards no agent"):
                listener = await self._connection.start_unix_server(grant.accept, path, encoding=None)
        except BaseException:
            grant.revoke()
            raise
        return AgentListener(grant, listener)

    def _hear(self, data: bytes, datatype: int | None = None) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        self._news.set()
        self._receive(data, datatype)

    @property
    def silent_s(self) -> float:
        """For how many seconds nothing has come from the guest."""
        return asyncio.get_running_loop().time() - self._heard_at

    @property
    def is_closed(self) -> bool:
        """Whether it has ended."""
        return self._connection.is_closed()

    def ask_often(self, interval_s: float) -> None:
        """Ask a silent guest for an answer at this interval from now on, and never give up."""
        self._connection.set_keepalive(interval_s, _NEVER)

    async def until_silent(self, seconds: float) -> None:
        """Wait until nothing has come for so long, or the connection has ended."""
        while not self.is_closed and (rest := seconds - self.silent_s) > 0:
            with anyio.move_on_after(rest):
                await self._connection.wait_closed()

    async def until_heard(self) -> None:
        """Wait until something comes; on a connection that has ended, for ever."""
        self._news.clear()
        await self._news.wait()

    async def wait_closed(self) -> str:
        """Return why the connection ended, once it has."""
        await self._connection.wait_closed()
        return self._owner.reason

    def cut(self) -> None:
        """Break the connection beneath SSH, as a network does: nobody says farewell. Never waits."""
        with contextlib.suppress(OSError):
            self._connection.get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    async def aclose(self) -> None:
        """End the connection. May be called twice; shielded, and bounded by `CLOSE_S`."""
        self._connection.close()
        with anyio.move_on_after(CLOSE_S, shield=True):
            await self._connection.wait_closed()
        self._connection.abort()

    @contextlib.contextmanager
    def _refusing(self, message: str) -> Iterator[None]:
        """Map what the library raises.

        Raises:
            ChannelRefusedError: The guest does not do it; with `message`.
            LinkLostError: The connection is gone.
        """
        try:
            yield
        except (asyncssh.Error, asyncssh.ChannelListenError, OSError) as error:
            if self._connection.is_closed():
                raise LinkLostError(
                    "the connection to the guest was lost", detail=self._owner.reason
                ) from error
            raise ChannelRefusedError(message, detail=str(error)) from error


async def connect(access: Access, *, timeout_s: float) -> Link:
    """Open a connection to a started guest, whose host key must be the one that was made for it.

    A cancelled call leaves no connection behind.

    Raises:
        ConnectTimeoutError: No connection within `timeout_s`.
        HostKeyError: Somebody else answers.
        AuthenticationError: The guest refuses our key.
        ConnectError: Nobody answers, or not with SSH.
    """
    owner = ConnectionOwner()
    where = f"{access.address}:{access.port}"
    try:
        with anyio.fail_after(timeout_s):
            connection = await asyncssh.connect(
                access.address,
                access.port,
                client_factory=lambda: owner,
                config=[],
                agent_path=None,
                known_hosts=([asyncssh.import_public_key(access.host_key)], [], []),
                client_keys=[str(access.client_key)],
                username=access.user,
                preferred_auth="publickey",
                gss_host=None,
                kex_algs=KEY_EXCHANGES,
                encryption_algs=CIPHERS,
                compression_algs=["none"],
                keepalive_interval=KEEPALIVE_S,
                keepalive_count_max=KEEPALIVE_COUNT,
                login_timeout=timeout_s,
                # The user name stands for itself; what else the library reads from the host is named above.
                x509_trusted_certs=None,
            )
    except TimeoutError:
        raise ConnectTimeoutError(f"no SSH connection to {where} after {timeout_s:g} s") from None
    except asyncssh.HostKeyNotVerifiable as error:
        raise HostKeyError(
            f"what answers at {where} is not our guest",
            detail=error.reason,
            hint="another program took the port, or something sits between us and the guest",
        ) from error
    except asyncssh.PermissionDenied as error:
        raise AuthenticationError(f"the guest at {where} refuses our key", detail=error.reason) from error
    except (OSError, asyncssh.Error, ValueError) as error:
        raise ConnectError(f"no SSH connection to {where}", detail=str(error)) from error
    # What is read at once is worked off before another session's bytes have their turn.
    connection.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, AT_ONCE)
    return Link(connection, owner, access.holder)
