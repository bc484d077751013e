"""The published ports of one session: listening on this host's loopback, leading into its guest.

They are taken before the session has a VM, so that a port that somebody else has is told before anything
starts. As long as there is no guest, whoever connects is reset. Whatever goes wrong with a port, the session
goes on.
"""

import socket
from collections.abc import Callable, Collection, Coroutine
from contextlib import aclosing, suppress
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import msgspec
import structlog

from claude_vm.context.ports import Publish
from claude_vm.supervisor.conditions import Condition
from claude_vm.supervisor.daemon.ports import loopback
from claude_vm.supervisor.daemon.ports.following import MOST, Following
from claude_vm.supervisor.daemon.ports.neighbours import may_enter
from claude_vm.supervisor.ssh.errors import LinkLostError, SshError
from claude_vm.supervisor.ssh.forward import carry
from claude_vm.supervisor.ssh.link import Link
from claude_vm.supervisor.ssh.listening import listening_ports
from claude_vm.supervisor.wire.connected_client import Level

log = structlog.get_logger()

MOST_CONNECTIONS = 128
"""Connections of one session at a time; more are reset. Each may hold a window of `PORT_WINDOW` bytes."""

MOST_TOLD = 100
"""Lines about ports that a session's client is told. The guest decides how many there could be."""

HINT_AFTER_S = 2.0
"""When a guest is asked first what it listens at, in seconds, where only a hint could come of it. A short
command is over by then, and the first seconds belong to the command."""

AGAIN_S = 1.0
"""Pause, in seconds, before a guest that did not tell is asked again."""

TellClient = Callable[[str, Level], None]
"""Tells the session's client a line. Never waits."""


class PublishedPort(msgspec.Struct, frozen=True):
    """A port as listings show it. `auto`: it follows the guest. `problem`: why it is not open, or ""."""

    host: int
    guest: int
    auto: bool
    problem: str


class _Forward:
    """A guest's port that this host listens for. Without sockets it is closed, by a `problem`."""

    def __init__(
        self, guest: int, host: int, sockets: list[socket.socket], *, auto: bool = False, problem: str = ""
    ) -> None:
        self.guest = guest
        self.host = host
        self.auto = auto
        self.problem = problem
        self._scope = anyio.CancelScope()
        self._sockets = sockets
        self._served = False

    async def accept(
        self, serve_client: Callable[[socket.socket], Coroutine[Any, Any, None]], tasks: anyio.abc.TaskGroup
    ) -> None:
        """Give each connection to a task of the group, until `close`."""
        self._served = True
        try:
            with self._scope:
                async with anyio.create_task_group() as loops:
                    for each in self._sockets:
                        loops.start_soon(loopback.serve, each, serve_client, tasks)
        finally:
            self._close()

    def close(self) -> None:
        """Listen no more, at once or in the loop's next turn; connections go on."""
        self._scope.cancel()
        if not self._served:  # else the event loop still watches them
            self._close()

    def _close(self) -> None:
        for each in self._sockets:
            each.close()


class Ports:
    """The ports of one session. `wanted` is what it publishes, `session_id` whose they are, for the log."""

    def __init__(self, wanted: Publish, session_id: str = "") -> None:
        self.wanted = wanted
        self._session_id = session_id
        self._forwards: dict[int, _Forward] = {}  # by the host's port
        self._following = Following({port.guest for port in wanted.ports})
        self._link: Link | None = None
        self._linked = Condition()
        self._connections = 0
        self._told = 0
        self._tell: TellClient = _nobody
        self._neighbours: Callable[[], Collection[int]] = tuple
        self._former: dict[int, int] = {}  # the host's port that a guest's had before

    # For listings and messages. Never waits.

    @property
    def listed(self) -> list[PublishedPort]:
        """All ports, by the host's number."""
        return [
            PublishedPort(f.host, f.guest, f.auto, f.problem)
            for f in sorted(self._forwards.values(), key=lambda f: f.host)
        ]

    def has(self, host: int) -> bool:
        """Whether a port of this host is open for this session."""
        found = self._forwards.get(host)
        return found is not None and not found.problem

    # From the request to the end. Never waits.

    def reserve(self) -> list[tuple[int, str]]:
        """Listen at all ports that were named; return those that can't be had, each with the reason."""
        problems: list[tuple[int, str]] = []
        for port in self.wanted.ports:
            try:
                sockets, problem = loopback.listen(port.host), ""
            except OSError as error:
                sockets, problem = [], error.strerror or str(error)
                problems.append((port.host, problem))
            self._forwards[port.host] = _Forward(port.guest, port.host, sockets, problem=problem)
        return problems

    def keep_out(self, neighbours: Callable[[], Collection[int]]) -> None:
        """Refuse the guests of other sessions. `neighbours` returns the processes of their VMs."""
        self._neighbours = neighbours

    def connect(self, link: Link) -> None:
        """The session has its guest, reached by this link."""
        self._link = link
        self._linked.notify_all()

    def disconnect(self) -> None:
        """The guest is not to be reached any more: who connects is reset."""
        self._link = None

    def close(self) -> None:
        """Listen no more. May be called twice."""
        for forward in self._forwards.values():
            forward.close()
        self._forwards.clear()

    # Its task.

    async def serve(self, tell: TellClient, *, hint: bool) -> None:
        """Serve the ports until cancelled; with `hint` say once that a guest listens and has no port here."""
        self._tell = tell
        try:
            async with anyio.create_task_group() as tasks:
                for forward in self._forwards.values():
                    if not forward.problem:
                        tasks.start_soon(self._accept, forward, tasks)
                        way = f"localhost:{forward.host} leads to the guest's port {forward.guest}"
                        self._say(way, "verbose")
                if self.wanted.ports:  # also those that are not open are listed as long as the session lasts
                    tasks.start_soon(anyio.sleep_forever)
                if self.wanted.auto:
                    tasks.start_soon(self._follow, tasks)
                elif hint and not self.wanted.ports:
                    tasks.start_soon(self._watch_for_hint)
        except Exception:
            log.exception("ports-not-served", session=self._session_id)
        finally:
            self.close()

    async def _accept(self, forward: _Forward, tasks: anyio.abc.TaskGroup) -> None:
        async def serve_client(client: socket.socket) -> None:
            await self._carry(client, forward.guest)

        try:
            await forward.accept(serve_client, tasks)
        except Exception as error:  # one port less, and a session that goes on
            log.exception("port-not-served", session=self._session_id, port=forward.host)
            forward.problem = str(error) or type(error).__name__

    async def _carry(self, client: socket.socket, port: int) -> None:
        self._connections += 1
        try:
            admitted = self._connections <= MOST_CONNECTIONS and await self._admits(client)
            await carry(self._link if admitted else None, client, port)
        except Exception:  # one connection less
            log.exception("connection-not-carried", session=self._session_id, port=port)
        finally:
            self._connections -= 1

    async def _admits(self, client: socket.socket) -> bool:
        """Whether a client is no other session's guest."""
        vms = self._neighbours()
        return not vms or await anyio.to_thread.run_sync(may_enter, client, vms)

    async def _until_linked(self) -> None:
        while self._link is None:
            await self._linked.wait()

    async def _follow(self, tasks: anyio.abc.TaskGroup) -> None:
        """Publish what the guest listens at, as it comes and goes."""
        while True:
            await self._until_linked()
            with suppress(SshError):
                if self._link is not None:
                    async with aclosing(listening_ports(self._link)) as answers:
                        async for listening in answers:
                            self._apply(listening, tasks)
            await anyio.sleep(AGAIN_S)

    def _apply(self, listening: frozenset[int], tasks: anyio.abc.TaskGroup) -> None:
        changes = self._following.changes(listening)
        for guest in changes.close:
            for forward in [f for f in self._forwards.values() if f.auto and f.guest == guest]:
                forward.close()
                del self._forwards[forward.host]
                self._say(f"the guest no longer listens at {guest}", "verbose")
        for guest in changes.open:
            self._open(guest, tasks)
        if changes.overflow:
            self._say(f"the guest listens at more ports than `auto` publishes ({MOST} at a time)")

    def _open(self, guest: int, tasks: anyio.abc.TaskGroup) -> None:
        """Publish a guest's port at its own number, or where that is taken, at another."""
        try:
            sockets = self._sockets_for(guest)
        except OSError as error:
            self._say(f"the guest listens at {guest}, which can't be published: {error.strerror}", "error")
            return
        host = sockets[0].getsockname()[1]
        forward = self._forwards[host] = _Forward(guest, host, sockets, auto=True)
        self._former[guest] = host
        why = "" if host == guest else " (its own number is taken on this host)"
        self._say(f"the guest's port {guest} is at localhost:{host}{why}")
        tasks.start_soon(self._accept, forward, tasks)

    def _sockets_for(self, guest: int) -> list[socket.socket]:
        for number in (self._former.get(guest, guest), guest):
            with suppress(OSError):
                return loopback.listen(number)
        return loopback.listen_anywhere()

    async def _watch_for_hint(self) -> None:
        """Say once that the guest listens at a port that is not published."""
        while True:
            await self._until_linked()
            await anyio.sleep(HINT_AFTER_S)
            try:
                if self._link is not None:
                    async with aclosing(listening_ports(self._link)) as answers:
                        async for listening in answers:
                            if found := self._following.candidates(listening):
                                self._hint(found[0])
                                return
            except LinkLostError:
                continue
            except SshError:
                return  # it does not tell; nothing depends on it

    def _hint(self, guest: int) -> None:
        self._say(
            f"the guest listens at {guest}, and this host can't reach that port;"
            f" publish it with --publish {guest}, or --publish auto"
        )

    def _say(self, text: str, level: Level = "info") -> None:
        log.info("port", session=self._session_id, text=text)
        if self._told < MOST_TOLD:
            self._told += 1
            self._tell(f"claude-vm: {text}", level)


def _nobody(text: str, level: Level) -> None:
    """Tell nobody."""
