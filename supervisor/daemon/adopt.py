"""What dead supervisors left: found at start, taken over or deleted, and told.

Two kinds: what this supervisor's predecessor left (same id, so the core takes the instances as its own and
deletes them), and what supervisors inside clients left (each with an id of its own; swept here under
their lock, as nobody else owns them).
"""

import sqlite3
from pathlib import Path

import structlog

from claude_vm.context.worktree_locks import release_stale
from claude_vm.drivers import registry
from claude_vm.drivers.api import Owner
from claude_vm.drivers.errors import DriverError
from claude_vm.supervisor.daemon import identity
from claude_vm.supervisor.daemon.dispatch import Dispatcher
from claude_vm.supervisor.daemon.drivers import DriverSet
from claude_vm.supervisor.daemon.journal import Journal

log = structlog.get_logger()

REASON = "its supervisor died"


async def adopt(dispatcher: Dispatcher, drivers: DriverSet, journal: Journal) -> None:
    """Take over what the predecessor left. Nothing of it is warm, so all of it is deleted."""
    known = {left.instance_id: left.driver for left in journal.left_instances()}
    for name in registry.ALL:
        try:
            driver = await drivers.get(name)
            found = await driver.list_instances()
        except DriverError as error:
            log.warning("driver-not-swept", driver=name, error=str(error))
            continue
        for record in found:
            known.pop(record.instance_id, None)
            log.info("instance-found", instance=record.instance_id, driver=name, status=record.status)
            dispatcher.adopt(record.instance_id, name, REASON)
    for instance_id in known:  # deleted, but the supervisor died before it wrote that
        journal.forget(instance_id)


def release_worktrees(journal: Journal, supervisor_id: str) -> None:
    """Unlock the worktrees that the predecessor's sessions had locked."""
    for repository, session_id in journal.locked_repositories():
        release_stale(Path(repository), supervisor_id)
        journal.unlock_worktrees(repository, session_id)


async def sweep_others(home: Path, own_id: str, runtime: Path, boot_id: str) -> int:
    """Delete what other dead supervisors left; return how many instances that were."""
    swept = 0
    for other in identity.dead_supervisors(home, own_id):
        try:
            with identity.locked(home, other) as folder:
                swept += await _sweep(Owner(home=home, supervisor_id=other, runtime=runtime))
                try:
                    with Journal.open(folder / "journal.db", boot_id) as (journal, _):
                        release_worktrees(journal, other)
                except sqlite3.Error as error:
                    log.warning("journal-not-read", supervisor=other, error=str(error))
                if other != identity.DAEMON_ID:
                    identity.remove(home, other)
        except identity.AlreadyRunningError:
            continue
        except DriverError as error:  # its folder stays, so the next start tries again
            log.warning("supervisor-not-swept", supervisor=other, error=str(error))
    return swept


async def _sweep(owner: Owner) -> int:
    swept = 0
    for name in registry.ALL:
        async with registry.open_driver(name, owner) as driver:
            for record in await driver.list_instances():
                log.info("instance-swept", instance=record.instance_id, supervisor=owner.supervisor_id)
                await driver.delete(record.instance_id)
                swept += 1
    return swept
