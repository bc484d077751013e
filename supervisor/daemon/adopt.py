"""What dead supervisors left: found at start, taken over or deleted, and told.

Two kinds: what this supervisor's predecessor left (same id, so the core takes the instances as its own: warm
ones and those with a running session are used on, others deleted), and what supervisors inside clients left
(each with an id of its own; swept here under their lock, as nobody else owns them). What the daemon left is
its successor's alone: sessions go on in it.
"""

import os
import sqlite3
import time
from collections.abc import Mapping, Sequence

import msgspec
import structlog

from claude_vm.context.ports import parse_publish
from claude_vm.drivers import registry
from claude_vm.drivers.api import Access, InstanceRecord, InstanceStatus, Owner
from claude_vm.drivers.errors import DriverError
from claude_vm.drivers.programs import system
from claude_vm.supervisor.core.instance import UNKNOWN_KEY
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.daemon.dispatch.dispatcher import Dispatcher
from claude_vm.supervisor.daemon.dispatch.reconnection import SessionLostError
from claude_vm.supervisor.daemon.drivers import DriverSet
from claude_vm.supervisor.daemon.sessions.plan import SessionPlan
from claude_vm.supervisor.daemon.sessions.scanning import Scanner
from claude_vm.supervisor.daemon.sessions.session import Session
from claude_vm.supervisor.daemon.sessions.surroundings import Surroundings
from claude_vm.supervisor.daemon.state import identity
from claude_vm.supervisor.daemon.state.database import NewerSchemaError
from claude_vm.supervisor.daemon.state.journal import RESUME, RUN, WARM, Journal
from claude_vm.supervisor.daemon.state.records import JournaledSession, LeftInstance
from claude_vm.supervisor.ssh.process import Pty

log = structlog.get_logger()

REASON = "its supervisor died"

_GONE = ", and its VM is gone"

UNKNOWN_TERMINAL = Pty(term="", rows=0, columns=0)
"""The terminal of a session of which only is known that it has one."""


class Adopted(msgspec.Struct, frozen=True):
    """What was done with what the predecessor left.

    `sessions` go on without a client; `lost` are instances whose session had started and does not. `spared`
    are left to the next supervisor, and so are sessions (`out_of_reach`) whose driver can't be asked.
    """

    warm: tuple[str, ...] = ()
    sessions: tuple[Session, ...] = ()
    deleted: tuple[str, ...] = ()
    spared: tuple[str, ...] = ()
    lost: tuple[LeftInstance, ...] = ()
    out_of_reach: tuple[str, ...] = ()

    @property
    def going_on(self) -> frozenset[str]:
        """The sessions that what follows a session must not be done for yet."""
        return frozenset((*(session.session_id for session in self.sessions), *self.out_of_reach))


async def adopt(
    dispatcher: Dispatcher, drivers: DriverSet, journal: Journal, *, spare: bool = False
) -> Adopted:
    """Take over what the predecessor left.

    What is warm is kept for the next session; a session whose main command had started goes on; everything
    else is deleted. With `spare` only sessions are taken over, and nothing is deleted. What was done is in
    the log. A session that can't be taken over is told as lost; everything else is taken over all the same.
    """
    adoption = _Adoption(dispatcher, journal.left_instances(), spare=spare)
    for name in registry.DRIVERS:
        try:
            found, current = await _ask(drivers, name)
        except DriverError as error:
            log.warning("driver-not-swept", driver=name, error=str(error))
            adoption.refusals[name] = error
            continue
        for record in found:
            await adoption.take(name, record, current)
    for instance_id in adoption.gone():  # deleted, but the supervisor died before it wrote that
        journal.forget(instance_id)
    return adoption.finish()


class _Adoption:
    """An adoption under way. `refusals` are why drivers can't be asked, by name."""

    def __init__(self, dispatcher: Dispatcher, left: Sequence[LeftInstance], *, spare: bool) -> None:
        self.refusals: dict[str, DriverError] = {}
        self._dispatcher = dispatcher
        self._spare = spare
        self._left = left
        self._missing = {one.instance_id: one for one in left}
        self._warm: list[str] = []
        self._sessions: list[Session] = []
        self._deleted: list[str] = []
        self._spared: list[str] = []
        self._reasons: dict[str, str] = {}

    async def take(self, driver: str, record: InstanceRecord, current: Mapping[str, str]) -> None:
        """Take over an instance that is there, or have it deleted."""
        name = record.instance_id
        try:
            judged = _judge(driver, self._missing.pop(name, None), record, current)
            if isinstance(judged, Running):
                session = _found(judged.row, judged.key)
                session.tell("resume", "resumed")
                await self._dispatcher.adopt_session(session, name, judged.access)
                self._sessions.append(session)
                log.info("session-adopted", session=session.session_id, instance=name)
                return
        except Exception as error:  # a bug around one session must not end the others
            log.exception("instance-not-adopted", instance=name)
            if self._dispatcher.core.knows(name):
                return  # the core knows it, and has it deleted when what it decides fails
            judged = Garbage(f"it can't be taken over: {type(error).__name__}: {error}")
        if isinstance(judged, Garbage):
            self._reasons[name] = judged.reason
        match judged:
            case _ if self._spare:
                self._spared.append(name)
            case Warm(key=key, access=access, age_s=age_s):
                self._dispatcher.adopt_warm(name, key, access, age_s)
                self._warm.append(name)
                log.info("warm-instance-adopted", instance=name, driver=driver)
            case Garbage(reason=reason):
                log.info("instance-found", instance=name, driver=driver, status=record.status, reason=reason)
                self._dispatcher.adopt_garbage(name, driver, reason)
                self._deleted.append(name)

    def gone(self) -> list[str]:
        """Return the instances that are nowhere, and that no driver can be silent about."""
        return [name for name, left in self._missing.items() if left.driver not in self.refusals]

    def finish(self) -> Adopted:
        """Tell which sessions do not go on, and return what was done."""
        lost: list[LeftInstance] = []
        out_of_reach: list[str] = []
        going_on = {session.session_id for session in self._sessions}
        for left in self._left:
            if left.session is None or left.session.session_id in going_on:
                continue
            if self._dispatcher.core.knows(left.session.session_id):
                continue  # its end will be told
            refusal = self.refusals.get(left.driver)
            if refusal is None:
                code, why = SessionLostError.code, self._reasons.get(left.instance_id, f"{REASON}{_GONE}")
                lost.append(left)
            else:
                code, why = refusal.code, f"{REASON}, and its driver can't be asked: {refusal.message}"
                out_of_reach.append(left.session.session_id)
            log.warning("session-lost", session=left.session.session_id, code=code, reason=why)
            self._dispatcher.lose_session(_found(left.session, left.key or UNKNOWN_KEY), code, why)
        return Adopted(
            warm=tuple(self._warm),
            sessions=tuple(self._sessions),
            deleted=tuple(self._deleted),
            spared=tuple(self._spared),
            lost=tuple(lost),
            out_of_reach=tuple(out_of_reach),
        )


async def _ask(drivers: DriverSet, name: str) -> tuple[Sequence[InstanceRecord], dict[str, str]]:
    """Return a driver's instances, and the generations of its templates by name.

    Raises:
        DriverError: It can't be opened, or does not say.
    """
    try:
        driver = await drivers.get(name)
        found = await driver.list_instances()
        return found, {t.name: t.generation for t in await driver.templates() if not t.stale}
    except DriverError:
        raise
    except Exception as error:  # a bug around one driver must not end the sessions of the others
        log.exception("driver-not-asked", driver=name)
        raise DriverError(f"{type(error).__name__}: {error}") from error


class Warm(msgspec.Struct, frozen=True):
    """It can serve a session. `age_s` is how long ago it was made."""

    key: PoolKey
    access: Access
    age_s: float


class Running(msgspec.Struct, frozen=True):
    """A session runs in it."""

    row: JournaledSession
    key: PoolKey
    access: Access


class Garbage(msgspec.Struct, frozen=True):
    """It is of no more use, for a reason."""

    reason: str


def _judge(
    driver: str, left: LeftInstance | None, record: InstanceRecord, current: Mapping[str, str]
) -> Warm | Running | Garbage:
    """Say what becomes of a driver's instance. `current` are the generations of its templates by name.

    In doubt it is garbage: it can be made again, and what may have run anything must not be claimed.
    """
    flaw = _flaw(driver, left, record)
    if flaw or left is None or left.key is None or left.access is None:
        return Garbage(f"{REASON}{flaw or ' while it was made'}")
    if left.state in {RUN, RESUME} and left.session is not None:
        return Running(left.session, left.key, left.access)
    if left.state != WARM:
        return Garbage(f"{REASON} at: {left.state}")
    if current.get(left.key.template) != left.key.generation:
        return Garbage("its template was changed meanwhile")
    return Warm(left.key, left.access, max(0.0, time.time() - left.made_at))


def _flaw(driver: str, left: LeftInstance | None, record: InstanceRecord) -> str:
    """Say what makes it impossible to go on with an instance, whatever its state; "" for nothing."""
    if left is None:
        return ", and its journal does not know it"
    key, access = left.key, left.access
    flaws = {
        "the host was restarted since": not left.same_boot,
        "its VM does not run": record.status is not InstanceStatus.RUNNING,
        "what was written down of it can't be read": left.session is not None
        and (key is None or access is None),
        "its journal has it as a VM of another driver": key is not None and key.driver != driver,
        "the key to its guest is gone": access is not None and not os.access(access.client_key, os.R_OK),
    }
    return next((f", and {flaw}" for flaw, there in flaws.items() if there), "")


def _found(row: JournaledSession, key: PoolKey) -> Session:
    """Return a session that a dead supervisor began."""
    plan = SessionPlan(
        key=key,
        project=row.project,
        command_text=row.command_text,
        launch=None,
        pty=UNKNOWN_TERMINAL if row.pty else None,
        publish=parse_publish(row.publish),
    )
    return Session(row.session_id, plan, created_at=row.created_at, found=True)


async def sweep_others(owner: Owner, boot_id: str, scanner: Scanner) -> int:
    """Delete what dead supervisors inside clients left; return how many instances that were.

    `owner` is who sweeps. `scanner` gets the sessions that had started.
    """
    swept = 0
    for other in identity.dead_supervisors(owner.home, owner.supervisor_id):
        dead = msgspec.structs.replace(owner, supervisor_id=other)
        try:
            with identity.locked(owner.home, other) as folder:
                try:  # what a newer version wrote down is refused before anything is deleted
                    with Journal.open(folder / "journal.db", boot_id) as (journal, _):
                        swept += await _sweep(dead)
                        await Surroundings(journal, other, scanner).settle(journal.left_instances())
                except sqlite3.Error as error:
                    log.warning("journal-not-read", supervisor=other, error=str(error))
                    swept += await _sweep(dead)
                identity.remove(owner.home, other)
        except identity.AlreadyRunningError:
            continue
        except (DriverError, OSError, NewerSchemaError) as error:  # its folder stays for the next that starts
            log.warning("supervisor-not-swept", supervisor=other, error=str(error))
    return swept


async def _sweep(owner: Owner) -> int:
    swept = 0
    for name in registry.DRIVERS:
        async with registry.open_driver(name, owner, system()) as driver:
            for record in await driver.list_instances():
                log.info("instance-swept", instance=record.instance_id, supervisor=owner.supervisor_id)
                await driver.delete(record.instance_id)
                swept += 1
    return swept
