"""A supervisor from its opening to its end: lock, journal, sweep, core and drivers.

The daemon has one (`process.main`), and so has a client that runs its command alone (`process.in_client`).
"""

import os
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import cached_property
from pathlib import Path

import anyio
import anyio.abc
import msgspec
import structlog

from claude_vm.drivers import registry
from claude_vm.drivers.api import Owner
from claude_vm.drivers.errors import DriverError
from claude_vm.drivers.process import boot_id
from claude_vm.drivers.programs import system
from claude_vm.supervisor.core.core import Core
from claude_vm.supervisor.core.events import PolicyChanged, ShutdownRequested
from claude_vm.supervisor.core.policy import PoolPolicy
from claude_vm.supervisor.daemon import adopt
from claude_vm.supervisor.daemon.dispatch.clock import follow_drift, watch_host_clock
from claude_vm.supervisor.daemon.dispatch.dispatcher import Dispatcher
from claude_vm.supervisor.daemon.dispatch.execution import AdmitClone, admit_all
from claude_vm.supervisor.daemon.dispatch.faults import read_faults
from claude_vm.supervisor.daemon.drivers import DriverSet
from claude_vm.supervisor.daemon.pool.memory import Available, unknown
from claude_vm.supervisor.daemon.sessions.scanning import Scanner
from claude_vm.supervisor.daemon.sessions.sessions import Sessions
from claude_vm.supervisor.daemon.sessions.surroundings import Surroundings
from claude_vm.supervisor.daemon.state import identity
from claude_vm.supervisor.daemon.state.journal import Journal
from claude_vm.supervisor.daemon.state.known_folders import KnownFolders
from claude_vm.supervisor.daemon.state.reports import Reports
from claude_vm.supervisor.grammar.requests import Request
from claude_vm.supervisor.wire import paths

log = structlog.get_logger()

CHECKPOINT_INTERVAL_S = 60.0

NO_POOL = PoolPolicy()
"""Nothing is kept warm: for a supervisor that serves one command, and where nobody has said anything else."""


async def _nothing_to_prepare(request: Request) -> str:  # noqa: ARG001 - what others are told
    return ""


class Supervisor(msgspec.Struct, frozen=True, dict=True):
    """The supervisor that carries commands out. `sweep` looks for dead supervisors, in the background.

    `known_folders` remembers which folders guests could ever write. `prepare` is called before each
    command, and returns a remark for its client, or "". `started_at` is a Unix time in seconds.
    """

    dispatcher: Dispatcher
    sessions: Sessions
    drivers: DriverSet
    known_folders: KnownFolders
    scanner: Scanner
    sweep: Callable[[], None]
    in_process: bool = False
    prepare: Callable[[Request], Awaitable[str]] = _nothing_to_prepare
    started_at: float = msgspec.field(default_factory=time.time)

    @property
    def home(self) -> Path:
        """The data folder."""
        return self.drivers.owner.home

    @property
    def supervisor_id(self) -> str:
        """Its name among the supervisors of this home."""
        return self.drivers.owner.supervisor_id

    @cached_property
    def folders(self) -> tuple[Path, ...]:
        """Where our own data is: `home`, and what is elsewhere for want of a short path there."""
        return self.home, self.drivers.owner.runtime, *registry.folders(self.home)


@asynccontextmanager
async def open_supervisor(
    home: Path,
    supervisor_id: str,
    *,
    in_process: bool,
    policy: PoolPolicy = NO_POOL,
    admit: AdmitClone = admit_all,
    available: Available = unknown,
) -> AsyncIterator[Supervisor]:
    """Open a supervisor: its journal, core, dispatcher and drivers; take over and sweep what dead ones left.

    `policy` are the pool's first settings, `admit` refuses clones that this host has no room for, `available`
    tells what memory it has left.

    Leaving the context by the normal way ends all sessions and instances first, without haste limits of its
    own; a cancelled context leaves them to the next supervisor's sweep.

    Raises:
        AlreadyRunningError: Another process has this supervisor's lock.
        NewerSchemaError: A newer version wrote the journal.
        ValueError: The environment asks for a fault that does not exist.
    """
    faults = read_faults(os.environ)
    runtime = Path(paths.runtime_directory(str(home)))
    paths.make_private(str(runtime))
    boot = boot_id()
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(identity.locked(home, supervisor_id))
        journal, remark = stack.enter_context(Journal.open(folder / "journal.db", boot))
        if remark:
            log.error("journal-damaged", remark=remark)
        known_folders = KnownFolders(home)
        stack.callback(known_folders.close)
        scanner = Scanner(Reports(home))
        tasks = await stack.enter_async_context(anyio.create_task_group())
        owner = Owner(home=home, supervisor_id=supervisor_id, runtime=runtime)
        drivers = DriverSet(owner, tasks, system(), lambda: _prestart_where_possible(dispatcher, drivers))
        surroundings = Surroundings(journal, supervisor_id, scanner)
        sessions = Sessions(tasks, surroundings.around)
        dispatcher = Dispatcher(
            Core(policy), journal, drivers, tasks, sessions, admit=admit, available=available, faults=faults
        )
        adopted = await adopt.adopt(dispatcher, drivers, journal)
        await surroundings.settle(adopted.lost, adopted.going_on)
        tasks.start_soon(scanner.serve)
        tasks.start_soon(_clean_up, drivers, boot, scanner)
        tasks.start_soon(_checkpoint, journal)
        tasks.start_soon(watch_host_clock, lambda seconds: _clock_jumped(dispatcher, seconds))
        tasks.start_soon(follow_drift, dispatcher.set_clocks)
        yield Supervisor(
            dispatcher=dispatcher,
            sessions=sessions,
            drivers=drivers,
            known_folders=known_folders,
            scanner=scanner,
            sweep=lambda: _sweep_soon(tasks, drivers, boot, scanner),
            in_process=in_process,
        )
        if not dispatcher.stopped.is_set():
            dispatcher.post(ShutdownRequested(at=anyio.current_time()))
            await dispatcher.stopped.wait()
        tasks.cancel_scope.cancel()
        stack.callback(_remove_short, runtime, home)
    if in_process:
        identity.remove(home, supervisor_id)


def _prestart_where_possible(dispatcher: Dispatcher, drivers: DriverSet) -> None:
    policy = msgspec.structs.replace(dispatcher.core.policy, prestart_drivers=drivers.prestarting)
    dispatcher.post(PolicyChanged(at=anyio.current_time(), policy=policy))


def _remove_short(runtime: Path, home: Path) -> None:
    """A folder with a long path has its sockets elsewhere, where an empty folder would stay for ever."""
    if not runtime.is_relative_to(home):
        with suppress(OSError):  # a VM that goes on has sockets there
            runtime.rmdir()


def _clock_jumped(dispatcher: Dispatcher, seconds: float) -> None:
    log.info("host-clock-jumped", seconds=round(seconds, 3))
    dispatcher.set_clocks()


async def _clean_up(drivers: DriverSet, boot: str, scanner: Scanner) -> None:
    """What other supervisors and dead builders left. Beside the first commands, which need none of it."""
    await _sweep_others(drivers.owner, boot, scanner)
    for name in registry.DRIVERS:
        try:
            for removed in await (await drivers.get(name)).collect_garbage():
                log.info("garbage-removed", what=removed)
        except (DriverError, OSError) as error:
            log.warning("clean-up-failed", driver=name, error=str(error))


def _sweep_soon(tasks: anyio.abc.TaskGroup, drivers: DriverSet, boot: str, scanner: Scanner) -> None:
    """Sweep if there is any other supervisor's folder; whether it is dead, its lock tells.

    One that has ended well may have left a scan to do.
    """
    scanner.soon()
    if identity.dead_supervisors(drivers.owner.home, drivers.owner.supervisor_id):
        tasks.start_soon(_sweep_others, drivers.owner, boot, scanner)


async def _sweep_others(owner: Owner, boot: str, scanner: Scanner) -> None:
    try:
        await adopt.sweep_others(owner, boot, scanner)
    except (DriverError, OSError, sqlite3.Error) as error:
        log.warning("sweep-failed", error=str(error))


async def _checkpoint(journal: Journal) -> None:
    while True:
        await anyio.sleep(CHECKPOINT_INTERVAL_S)
        with suppress(sqlite3.Error):
            await anyio.to_thread.run_sync(journal.checkpoint)
