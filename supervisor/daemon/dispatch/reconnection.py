"""The way to one session's guest, made again whenever it breaks, as long as the guest's VM lives.

A guest that says nothing need not be dead: its VM was stopped, or its host has other things to do. So nothing
is given up here. A silent connection is kept, because over one that only stood still everything goes on as it
was; after a while another one is tried beside it. What the session says and is told is the holder's to keep,
see `claude_vm.supervisor.ssh.stream`. When the VM dies, its watcher tells the core, which cancels us.
"""

from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import structlog

from claude_vm.drivers.api import Driver
from claude_vm.drivers.errors import DriverError
from claude_vm.drivers.tasks import open_tasks
from claude_vm.supervisor.daemon.dispatch.instance import Instance
from claude_vm.supervisor.daemon.sessions.session import Session
from claude_vm.supervisor.ssh.errors import ChannelRefusedError, SessionUnknownError, SshError
from claude_vm.supervisor.ssh.link import Link
from claude_vm.supervisor.ssh.shells import HeldProcess
from claude_vm.supervisor.statuses import INTERRUPTED

log = structlog.get_logger()

OpenLink = Callable[[], Awaitable[Link]]
"""Makes a connection to the guest. Raises an `SshError`."""

ASK_S = 5.0
"""How often a guest that says nothing is asked for an answer, in seconds."""

SILENT_S = 10.0
"""When a session's client is told that its guest does not answer, in seconds since it was heard."""

PATIENCE_S = 20.0
"""How much longer a silent connection is waited for, in seconds, before another one is tried."""

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0
"""Pauses between two tries, in seconds. Each is twice as long as the one before."""

REFUSALS = 5
"""How often a guest that can be reached may refuse the way to its holder, until that is taken for dead."""


class SessionLostError(DriverError):
    """The session can't be gone on with, so its exit status is not known."""

    code = "session-lost"


class Reconnection:
    """Keeps one session in reach. `connect` makes a connection to the instance."""

    def __init__(self, instance: Instance, session: Session, driver: Driver, connect: OpenLink) -> None:
        self._instance = instance
        self._session = session
        self._driver = driver
        self._connect = connect

    async def during(self, process: HeldProcess, work: Callable[[], Awaitable[int]]) -> int:
        """Return the status that `work` returns; meanwhile keep the process in reach.

        Raises:
            SessionLostError: The guest knows nothing of the process any more.
            SshError: What `work` raises.
        """
        process.keep(self._session.session_id)
        status = INTERRUPTED  # unless the work ends before its user has had enough
        async with open_tasks() as tasks:

            async def leave() -> None:
                await self._session.abandoned.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(self._keep, process)
            tasks.start_soon(leave)
            status = await work()
            tasks.cancel_scope.cancel()
        return status

    async def _keep(self, process: HeldProcess) -> None:
        if self._instance.link is not None:
            self._instance.link.ask_often(ASK_S)
        while True:
            link = self._instance.link
            if link is not None:
                await _first_of(process.until_lost, partial(link.until_silent, SILENT_S))
            await self._come_back(process)

    async def _come_back(self, process: HeldProcess) -> None:
        """Return when the guest is heard again.

        Raises:
            SessionLostError: The guest knows nothing of the process any more.
        """
        link = self._instance.link
        begun = anyio.current_time() - (0.0 if link is None else link.silent_s)
        gap = process.gap
        told = False

        async def tell() -> None:
            nonlocal told
            await anyio.sleep(max(begun + SILENT_S - anyio.current_time(), 0.0))
            told = True
            self._session.silent(SILENT_S)
            log.warning("guest-silent", session=self._session.session_id)

        async with open_tasks() as tasks:
            tasks.start_soon(tell)
            await self._restore(process)
            tasks.cancel_scope.cancel()
        seconds = anyio.current_time() - begun
        log.info("guest-back", session=self._session.session_id, seconds=seconds, lost=process.gap - gap)
        if told or process.gap > gap:
            self._session.heard_again(seconds, process.gap - gap)
        if told:
            await self._set_clock()

    async def _restore(self, process: HeldProcess) -> None:
        pause_s = FIRST_PAUSE_S
        refusals = 0
        while True:
            try:
                await self._try(process)
            except SessionUnknownError as error:
                name = self._session.session_id
                raise SessionLostError(f"the guest no longer has the session {name}") from error
            except SshError as error:
                refusals = refusals + 1 if isinstance(error, ChannelRefusedError) else 0
                if refusals >= REFUSALS:
                    raise SessionLostError(
                        "the program that held the session in the guest is gone"
                    ) from error
                log.warning("guest-not-reached", session=self._session.session_id, error=str(error))
            else:
                return
            await anyio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _try(self, process: HeldProcess) -> None:
        """Have the process in reach, by the connection that there is or another one.

        Raises:
            SshError: That did not come about.
        """
        link = self._instance.link
        stands_still = link is not None and link.silent_s >= SILENT_S and not process.is_lost
        if link is not None and stands_still and not link.is_closed:
            # It stands still, or is dead without a word: whoever is quicker.
            made: list[Link] = []

            async def another() -> None:
                await anyio.sleep(PATIENCE_S)
                made.append(await self._connect())

            await _first_of(another, link.until_heard, process.until_lost)
            if made:
                await self._take(process, made[0])
            elif process.is_lost:
                await self._take(process, await self._connect())
        elif link is not None and not link.is_closed and link.silent_s < SILENT_S:
            await process.attach(link)
        else:
            await self._take(process, await self._connect())

    async def _take(self, process: HeldProcess, link: Link) -> None:
        """Use this connection from now on."""
        former, self._instance.link = self._instance.link, link
        self._session.unlinked()
        link.ask_often(ASK_S)
        await process.attach(link)
        await self._session.linked_again(link)
        if former is not None:
            await former.aclose()

    async def _set_clock(self) -> None:
        """A VM that was stopped may have missed the time."""
        try:
            await self._driver.set_clock(self._instance.instance_id)
        except DriverError as error:
            log.warning("clock-not-set", instance=self._instance.instance_id, error=str(error))


async def _first_of(*waits: Callable[[], Awaitable[None]]) -> None:
    """Return when one of them has returned; the others are cancelled."""
    async with open_tasks() as tasks:

        async def wait(until: Callable[[], Awaitable[None]]) -> None:
            await until()
            tasks.cancel_scope.cancel()

        for each in waits:
            tasks.start_soon(wait, each)
