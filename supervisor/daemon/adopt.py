"""What dead supervisors left: found at start, taken over or deleted, and told.

Two kinds: what this supervisor's predecessor left (same id, so the core takes the instances as its own: warm
ones and those with a running session are used on, others deleted), and what supervisors inside clients left
(each with an id of its own; swept here under their lock, as nobody else owns them). What the daemon left is
its successor's alone: sessions go on in it.
"""

import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
import structlog

from claude_vm.context.ports import parse_publish
from claude_vm.drivers import registry
from claude_vm.drivers.api import Access, InstanceRecord, InstanceStatus, Owner
from claude_vm.drivers.errors import DriverError
from claude_vm.drivers.programs import system
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.daemon.dispatch.dispatcher import Dispatcher
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

UNKNOWN_TERMINAL = Pty(term="", rows=0, columns=0)
"""The terminal of a session of which only is known that it has one."""


class Adopted(msgspec.Struct, frozen=True):
    """What was done with what the predecessor left.

    `sessions` go on without a client; `lost` are instances whose session had started and does not. `spared`
    are left to the next supervisor.
    """

    warm: tuple[str, ...] = ()
    sessions: tuple[Session, ...] = ()
    deleted: tuple[str, ...] = ()
    spared: tuple[str, ...] = ()
    lost: tuple[LeftInstance, ...] = ()


async def adopt(
    dispatcher: Dispatcher, drivers: DriverSet, journal: Journal, *, spare: bool = False
) -> Adopted:
    """Take over what the predecessor left.

    What is warm is kept for the next session; a session whose main command had started goes on; everything
    else is deleted. With `spare` only sessions are taken over, and nothing is deleted. What was done is in
    the log.
    """
    left_ones = journal.left_instances()
    known = {left.instance_id: left for left in left_ones}
    warm: list[str] = []
    sessions: list[Session] = []
    deleted: list[str] = []
    spared: list[str] = []
    for name in registry.DRIVERS:
        try:
            driver = await drivers.get(name)
            found = await driver.list_instances()
            current = {t.name: t.generation for t in await driver.templates() if not t.stale}
        except DriverError as error:
            log.warning("driver-not-swept", driver=name, error=str(error))
            continue
        for record in found:
            left = known.pop(record.instance_id, None)
            match _judge(left, record, current):
                case Warm() | Garbage() if spare:
                    spared.append(record.instance_id)
                case Warm(key=key, access=access, age_s=age_s):
                    dispatcher.adopt_warm(record.instance_id, key, access, age_s)
                    warm.append(record.instance_id)
                    log.info("warm-instance-adopted", instance=record.instance_id, driver=name)
                case Running(row=row, key=key, access=access):
                    session = _found(row, key)
                    await dispatcher.adopt_session(session, record.instance_id, access)
                    sessions.append(session)
                    log.info("session-adopted", session=row.session_id, instance=record.instance_id)
                case Garbage(reason=reason):
                    log.info(
                        "instance-found",
                        instance=record.instance_id,
                        driver=name,
                        status=record.status,
                        reason=reason,
                    )
                    dispatcher.adopt_garbage(record.instance_id, name, reason)
                    deleted.append(record.instance_id)
    goes_on = {session.session_id for session in sessions}
    lost = tuple(one for one in left_ones if one.session and one.session.session_id not in goes_on)
    for instance_id in known:  # deleted, but the supervisor died before it wrote that
        journal.forget(instance_id)
    return Adopted(tuple(warm), tuple(sessions), tuple(deleted), tuple(spared), lost)


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
    left: LeftInstance | None, record: InstanceRecord, current: Mapping[str, str]
) -> Warm | Running | Garbage:
    """Say what becomes of an instance. `current` are the generations of the driver's templates by name.

    In doubt it is garbage: it can be made again, and what may have run anything must not be claimed.
    """
    flaw = _flaw(left, record)
    if flaw or left is None or left.key is None or left.access is None:
        return Garbage(f"{REASON}{flaw or ' while it was made'}")
    if left.state in {RUN, RESUME} and left.session is not None:
        return Running(left.session, left.key, left.access)
    if left.state != WARM:
        return Garbage(f"{REASON} at: {left.state}")
    if current.get(left.key.template) != left.key.generation:
        return Garbage("its template was changed meanwhile")
    return Warm(left.key, left.access, max(0.0, time.time() - left.made_at))


def _flaw(left: LeftInstance | None, record: InstanceRecord) -> str:
    """Say what makes it impossible to go on with an instance, whatever its state; "" for nothing."""
    if left is None:
        return ", and its journal does not know it"
    if not left.same_boot:
        return ", and the host was restarted since"
    return "" if record.status is InstanceStatus.RUNNING else ", and its VM does not run"


def _found(row: JournaledSession, key: PoolKey) -> Session:
    """Return a session that was found running."""
    plan = SessionPlan(
        key=key,
        project=row.project,
        command_text=row.command_text,
        launch=None,
        pty=UNKNOWN_TERMINAL if row.pty else None,
        publish=parse_publish(row.publish),
    )
    session = Session(row.session_id, plan, created_at=row.created_at, found=True)
    session.tell("resume", "resumed")
    return session


async def sweep_others(home: Path, own_id: str, runtime: Path, boot_id: str, scanner: Scanner) -> int:
    """Delete what dead supervisors inside clients left; return how many instances that were.

    `scanner` gets the sessions that had started.
    """
    swept = 0
    for other in identity.dead_supervisors(home, own_id):
        try:
            with identity.locked(home, other) as folder:
                owner = Owner(home=home, supervisor_id=other, runtime=runtime)
                try:  # what a newer version wrote down is refused before anything is deleted
                    with Journal.open(folder / "journal.db", boot_id) as (journal, _):
                        swept += await _sweep(owner)
                        await Surroundings(journal, other, scanner).settle(journal.left_instances())
                except sqlite3.Error as error:
                    log.warning("journal-not-read", supervisor=other, error=str(error))
                    swept += await _sweep(owner)
                identity.remove(home, other)
        except identity.AlreadyRunningError:
            continue
        except (
            DriverError,
            OSError,
            NewerSchemaError,
        ) as error:  # its folder stays for the next one that starts
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
