"""The daemon's life: lock, log, journal, sweep, serve, end.

The same code serves one client inside its own process (`--no-daemon`): see `inprocess`.
"""

import math
import os
import resource
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import anyio
import anyio.abc
import structlog

from claude_vm.drivers import registry
from claude_vm.drivers.api import Owner
from claude_vm.drivers.errors import DriverError
from claude_vm.drivers.process import boot_id
from claude_vm.supervisor.core.events import ShutdownRequested
from claude_vm.supervisor.core.machine import Core
from claude_vm.supervisor.core.pool import PoolPolicy
from claude_vm.supervisor.daemon import adopt, identity, logfile
from claude_vm.supervisor.daemon.clock import watch_host_clock
from claude_vm.supervisor.daemon.commands.command import Host
from claude_vm.supervisor.daemon.dispatch import Dispatcher
from claude_vm.supervisor.daemon.drivers import DriverSet
from claude_vm.supervisor.daemon.handler import handle
from claude_vm.supervisor.daemon.journal import Journal
from claude_vm.supervisor.wire import paths
from claude_vm.supervisor.wire.messages import VERSION_MISMATCH_IDLE
from claude_vm.supervisor.wire.records import Hello
from claude_vm.supervisor.wire.server import Client, Refusal, judge, serve
from claude_vm.supervisor.wire.version import VERSION

log = structlog.get_logger()

IDLE_EXIT_S = 900.0
"""A daemon without sessions and instances ends after so many seconds. ``CLAUDE_VM_IDLE_EXIT`` overrides."""

CHECKPOINT_INTERVAL_S = 60.0

FILES_WANTED = 65536
"""Open files that the daemon asks for; the hard limit may allow fewer."""


@asynccontextmanager
async def open_host(home: Path, supervisor_id: str, *, in_process: bool) -> AsyncIterator[Host]:
    """Open a supervisor: its journal, core, dispatcher and drivers; sweep what dead ones left.

    Leaving the context by the normal way ends all sessions and instances first, without haste limits of its
    own; a cancelled context leaves them to the next supervisor's sweep.

    Raises:
        AlreadyRunningError: Another process has this supervisor's lock.
    """
    runtime = Path(paths.runtime_directory(str(home)))
    paths.make_private(str(runtime))
    boot = boot_id()
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(identity.locked(home, supervisor_id))
        journal, remark = stack.enter_context(Journal.open(folder / "journal.db", boot))
        if remark:
            log.error("journal-damaged", remark=remark)
        tasks = await stack.enter_async_context(anyio.create_task_group())
        drivers = DriverSet(Owner(home=home, supervisor_id=supervisor_id, runtime=runtime), tasks)
        dispatcher = Dispatcher(Core(PoolPolicy()), journal, drivers, tasks)
        adopt.release_worktrees(journal, supervisor_id)
        await adopt.adopt(dispatcher, drivers, journal)
        tasks.start_soon(_clean_up, drivers, runtime, boot)
        tasks.start_soon(_checkpoint, journal)
        tasks.start_soon(watch_host_clock, lambda seconds: _clock_jumped(dispatcher, seconds))
        yield Host(
            home=home,
            supervisor_id=supervisor_id,
            version=VERSION,
            started_at=time.time(),
            dispatcher=dispatcher,
            drivers=drivers,
            journal=journal,
            sweep=lambda: _sweep_soon(tasks, drivers, runtime, boot),
            in_process=in_process,
        )
        if not dispatcher.stopped.is_set():
            dispatcher.post(ShutdownRequested(at=anyio.current_time()))
            await dispatcher.stopped.wait()
        tasks.cancel_scope.cancel()
    if in_process:
        identity.remove(home, supervisor_id)


def _clock_jumped(dispatcher: Dispatcher, seconds: float) -> None:
    log.info("host-clock-jumped", seconds=round(seconds, 3))
    dispatcher.set_clocks()


async def _clean_up(drivers: DriverSet, runtime: Path, boot: str) -> None:
    """What other supervisors and dead builders left. Beside the first commands, which need none of it."""
    owner = drivers.owner
    await _sweep_others(owner, runtime, boot)
    try:
        for name in registry.ALL:
            for removed in await (await drivers.get(name)).collect_garbage():
                log.info("garbage-removed", what=removed)
    except (DriverError, OSError) as error:
        log.warning("clean-up-failed", error=str(error))


def _sweep_soon(tasks: anyio.abc.TaskGroup, drivers: DriverSet, runtime: Path, boot: str) -> None:
    """Sweep if there is any other supervisor's folder; whether it is dead, its lock tells."""
    if identity.dead_supervisors(drivers.owner.home, drivers.owner.supervisor_id):
        tasks.start_soon(_sweep_others, drivers.owner, runtime, boot)


async def _sweep_others(owner: Owner, runtime: Path, boot: str) -> None:
    try:
        await adopt.sweep_others(owner.home, owner.supervisor_id, runtime, boot)
    except OSError as error:
        log.warning("sweep-failed", error=str(error))


async def _checkpoint(journal: Journal) -> None:
    while True:
        await anyio.sleep(CHECKPOINT_INTERVAL_S)
        with suppress(sqlite3.Error):
            await anyio.to_thread.run_sync(journal.checkpoint)


async def run_daemon(home: Path, *, idle_s: float, ready: Callable[[], None]) -> None:
    """Serve clients on the daemon's socket until told to stop, or idle for long.

    Raises:
        AlreadyRunningError: A daemon runs already.
    """
    socket_path = Path(paths.socket_path(str(home)))
    async with open_host(home, identity.DAEMON_ID, in_process=False) as host:
        listener = await _listen(socket_path)
        inode = socket_path.stat().st_ino
        clients = _Clients()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(
                    partial(
                        serve,
                        listener,
                        clients.counted(host),
                        admit=partial(_admit, host.dispatcher),
                        on_error=_log_client_error,
                    )
                )
                tasks.start_soon(_stop_on_signal, host.dispatcher)
                tasks.start_soon(_stop_when_idle, host.dispatcher, clients, idle_s)
                ready()
                log.info("serving", socket=str(socket_path), pid=os.getpid())
                await host.dispatcher.stopped.wait()
                await clients.gone()
                tasks.cancel_scope.cancel()
        finally:
            # only our own socket: a successor may have made its own already
            with suppress(FileNotFoundError):
                if socket_path.stat().st_ino == inode:
                    socket_path.unlink()
    log.info("stopped")


def _admit(dispatcher: Dispatcher, hello: Hello, argv: tuple[str, ...]) -> Refusal | None:
    """Refuse clients of another version; an idle daemon then makes room for theirs."""
    refusal = judge(hello, argv, busy=bool(dispatcher.sessions))
    if refusal is not None and refusal.code == VERSION_MISMATCH_IDLE:
        log.info("other-version", theirs=hello.version)
        dispatcher.post(ShutdownRequested(at=anyio.current_time()))
    return refusal


def _log_client_error(error: Exception) -> None:
    log.warning("client-failed", error=str(error), kind=type(error).__name__, exc_info=error)


class _Clients:
    """How many clients are being served."""

    def __init__(self) -> None:
        self.count = 0
        self.last_at = time.monotonic()
        self._changed = anyio.Event()

    def counted(self, host: Host) -> Callable[[Client], Awaitable[int]]:
        """Return the handler for `serve`."""

        async def handler(client: Client) -> int:
            self.count += 1
            try:
                return await handle(host, client)
            finally:
                self.count -= 1
                self.last_at = time.monotonic()
                self._changed.set()

        return handler

    async def gone(self) -> None:
        """Wait until the commands that are being served have ended, for a moment at most."""
        with anyio.move_on_after(2):
            while self.count:
                self._changed = anyio.Event()
                await self._changed.wait()


async def _listen(path: Path) -> anyio.abc.SocketListener:
    # The lock is ours, so whoever bound this socket is dead.
    with suppress(FileNotFoundError):
        path.unlink()
    before = os.umask(0o177)
    try:
        return await anyio.create_unix_listener(path, backlog=512)
    finally:
        os.umask(before)


async def _stop_on_signal(dispatcher: Dispatcher) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("signal", number=int(number))
            dispatcher.post(ShutdownRequested(at=anyio.current_time()))


def idle_limit(environ: Mapping[str, str]) -> float:
    """Return after how many idle seconds the daemon ends.

    Raises:
        ValueError: ``CLAUDE_VM_IDLE_EXIT`` is no positive number.
    """
    text = environ.get("CLAUDE_VM_IDLE_EXIT", str(IDLE_EXIT_S))
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not 0 < limit < math.inf:
        raise ValueError(f"CLAUDE_VM_IDLE_EXIT={text!r} is no positive number of seconds")
    return limit


async def _stop_when_idle(dispatcher: Dispatcher, clients: _Clients, limit: float) -> None:
    while True:
        await anyio.sleep(min(limit, 5.0))
        last = max(clients.last_at, dispatcher.idle_since)
        busy = clients.count or dispatcher.sessions or dispatcher.instance_count
        if not busy and time.monotonic() - last >= limit:
            log.info("idle", seconds=limit)
            dispatcher.post(ShutdownRequested(at=anyio.current_time()))
            return


def raise_file_limit() -> None:
    """Raise the soft limit of open files: each session takes about ten."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_WANTED if hard == resource.RLIM_INFINITY else min(FILES_WANTED, hard)
    if soft < wanted:
        with suppress(ValueError, OSError):  # macOS has a lower limit than it tells
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main(*, foreground: bool = False) -> int:
    """Run the daemon; return its exit status. With `foreground` the log goes to stderr."""
    raise_file_limit()
    home = Path(paths.home())
    report = _Readiness()
    try:
        str(home).encode()  # what is told about it is JSON
        paths.make_private(str(home / "logs"))
        logfile.configure(None if foreground else Path(paths.log_path(str(home))))
        anyio.run(_run, home, report)
    except Exception as error:
        cause = first_cause(error)
        if isinstance(cause, identity.AlreadyRunningError):
            report.failed(f"already-running: {cause}")
        else:
            if not foreground:
                log.exception("daemon-failed")
            report.failed(f"{type(cause).__name__}: {cause}")
        return 1
    return 0


def first_cause(error: BaseException) -> BaseException:
    """Return the first error of a group, which is what went wrong first."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _run(home: Path, report: "_Readiness") -> None:
    await run_daemon(home, idle_s=idle_limit(os.environ), ready=report.ready)


class _Readiness:
    """The pipe to the client that started the daemon: one word, then closed. Else silent."""

    def __init__(self) -> None:
        text = os.environ.pop("CLAUDE_VM_READY_FD", "")
        self._descriptor = int(text) if text.isdigit() else None

    def ready(self) -> None:
        """The daemon listens."""
        self._say("ok\n")

    def failed(self, reason: str) -> None:
        """The daemon does not come up."""
        if self._descriptor is None:
            sys.stderr.write(f"claude-vm daemon: {reason}\n")
        self._say(f"{reason}\n")

    def _say(self, text: str) -> None:
        if self._descriptor is not None:
            with suppress(OSError):  # the client is gone; the daemon serves others
                os.write(self._descriptor, text.encode())
                os.close(self._descriptor)
            self._descriptor = None
