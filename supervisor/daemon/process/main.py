"""The daemon's process: its log, its socket, its end when idle, and the word to who started it."""

import json
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import anyio
import anyio.abc
import structlog

from claude_vm.drivers.errors import words_of
from claude_vm.drivers.memory import available_mib
from claude_vm.drivers.tasks import first_cause
from claude_vm.supervisor.conditions import Condition
from claude_vm.supervisor.core.events import ShutdownRequested
from claude_vm.supervisor.core.policy import PoolPolicy
from claude_vm.supervisor.daemon.commands.answer import answer
from claude_vm.supervisor.daemon.dispatch.dispatcher import Dispatcher
from claude_vm.supervisor.daemon.errors import CommandError
from claude_vm.supervisor.daemon.pool.admission import admit
from claude_vm.supervisor.daemon.pool.policy import read_policy
from claude_vm.supervisor.daemon.process import logfile
from claude_vm.supervisor.daemon.state import identity
from claude_vm.supervisor.daemon.state.database import NewerSchemaError
from claude_vm.supervisor.daemon.state.known_folders import KnownFolders
from claude_vm.supervisor.daemon.supervisor import Supervisor, open_supervisor
from claude_vm.supervisor.statuses import FAILED
from claude_vm.supervisor.wire import paths, shortage
from claude_vm.supervisor.wire.connected_client import Client
from claude_vm.supervisor.wire.escape import printed
from claude_vm.supervisor.wire.messages import VERSION_MISMATCH_IDLE
from claude_vm.supervisor.wire.records import Hello, Refusal, judge
from claude_vm.supervisor.wire.server import serve

log = structlog.get_logger()

IDLE_EXIT_S = 900.0
"""A daemon without sessions and instances ends after so many seconds. ``CLAUDE_VM_IDLE_EXIT`` overrides."""

RETIRE_S = 0.2
"""How long a daemon that makes room for another version lives on, in seconds, for its last words."""

FILES_WANTED = 65536
"""Open files that the daemon asks for; the hard limit may allow fewer."""


async def run_daemon(home: Path, *, idle_s: float, ready: Callable[[], None]) -> None:
    """Serve clients on the daemon's socket until told to stop, or idle for long.

    Raises:
        AlreadyRunningError: A daemon runs already.
    """
    socket_path = Path(paths.socket_path(str(home)))
    policy = _first_policy(home)
    async with open_supervisor(
        home,
        identity.DAEMON_ID,
        in_process=False,
        policy=policy,
        admit=partial(admit, home),
        available=available_mib,
    ) as supervisor:
        listener = await _listen(socket_path)
        inode = socket_path.stat().st_ino
        clients = _Clients()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(
                    partial(
                        serve,
                        listener,
                        clients.counted(supervisor),
                        admit=partial(_admit, supervisor, tasks),
                        on_error=_log_client_error,
                    )
                )
                tasks.start_soon(_stop_on_signal, supervisor.dispatcher)
                tasks.start_soon(_stop_when_idle, supervisor, clients, idle_s)
                ready()
                log.info("serving", socket=str(socket_path), pid=os.getpid())
                await supervisor.dispatcher.stopped.wait()
                await clients.gone()
                tasks.cancel_scope.cancel()
        finally:
            # only our own socket: a successor may have made its own already
            with suppress(FileNotFoundError):
                if socket_path.stat().st_ino == inode:
                    socket_path.unlink()
    log.info("stopped")


def _admit(
    supervisor: Supervisor, tasks: anyio.abc.TaskGroup, hello: Hello, argv: tuple[str, ...]
) -> Refusal | None:
    """Refuse clients of another version; an idle daemon then makes room for theirs."""
    refusal = judge(hello, argv, busy=bool(supervisor.sessions.running))
    if refusal is not None and refusal.code == VERSION_MISMATCH_IDLE:
        log.info("other-version", theirs=hello.version)
        tasks.start_soon(_retire, supervisor)
    return refusal


async def _retire(supervisor: Supervisor) -> None:
    """End, once the refused client has heard that we do; not under a session that came meanwhile."""
    await anyio.sleep(RETIRE_S)
    if not supervisor.sessions.running:
        supervisor.dispatcher.post(ShutdownRequested(at=anyio.current_time()))


def _log_client_error(error: Exception) -> None:
    log.warning("client-failed", error=str(error), kind=type(error).__name__, exc_info=error)


class _Clients:
    """How many clients are being served."""

    def __init__(self) -> None:
        self.count = 0
        self.last_at = time.monotonic()
        self._changed = Condition()

    def counted(self, supervisor: Supervisor) -> Callable[[Client], Awaitable[int]]:
        """Return what answers a client, for `serve`."""

        async def counted(client: Client) -> int:
            self.count += 1
            try:
                return await answer(supervisor, client)
            finally:
                self.count -= 1
                self.last_at = time.monotonic()
                self._changed.notify_all()

        return counted

    async def gone(self) -> None:
        """Wait until the commands that are being served have ended, for a moment at most."""
        with anyio.move_on_after(2):
            while self.count:
                await self._changed.wait()


def _first_policy(home: Path) -> PoolPolicy:
    """Return what the settings of the pool are before any command: read where no guest's link leads."""
    known_folders = KnownFolders(home)
    try:
        guard = known_folders.known().guard
    except CommandError:
        return PoolPolicy()
    finally:
        known_folders.close()
    return read_policy(Path.home(), guard) or PoolPolicy()


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
        raise ValueError(f"CLAUDE_VM_IDLE_EXIT='{text}' is not a positive number of seconds")
    return limit


async def _stop_when_idle(supervisor: Supervisor, clients: _Clients, limit: float) -> None:
    dispatcher = supervisor.dispatcher
    while True:
        await anyio.sleep(min(limit, 5.0))
        last = max(clients.last_at, dispatcher.idle_since)
        busy = clients.count or supervisor.sessions.running or dispatcher.instance_count
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


def shed_limits() -> None:
    """Undo what the shell of the first client has limited, as far as we may, and leave no core file.

    All clients share this daemon, and a core file would have the secrets of all of them in it.
    """
    for name in ("AS", "CPU", "DATA", "FSIZE", "NPROC"):
        kind = getattr(resource, f"RLIMIT_{name}")
        _, hard = resource.getrlimit(kind)
        with suppress(ValueError, OSError):
            resource.setrlimit(kind, (hard, hard))
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(*, foreground: bool = False) -> int:
    """Run the daemon; return its exit status. With `foreground` the log goes to stderr."""
    raise_file_limit()
    shed_limits()
    home = Path(paths.home())
    report = _Readiness()
    try:
        str(home).encode()  # what is told about it is JSON
        paths.make_private(str(home / "logs"))
        logfile.configure(None if foreground else Path(paths.log_path(str(home))))
        anyio.run(partial(run_daemon, home, idle_s=idle_limit(os.environ), ready=report.ready))
    except Exception as error:
        cause = first_cause(error)
        if isinstance(cause, identity.AlreadyRunningError):
            report.failed(f"already-running: {cause}")
        elif short := shortage.of(cause, str(home)):
            if not foreground:
                log.error("not-writable", error=str(short))  # noqa: TRY400 - no bug of ours
            report.failed(short.report, f"{short} [{short.code}]")
        elif isinstance(cause, NewerSchemaError):
            if not foreground:
                log.error("newer-database", error=str(cause))  # noqa: TRY400 - no bug of ours
            refusal = {"code": cause.code, "message": str(cause), "hint": cause.hint}
            report.failed(json.dumps(refusal), f"{cause} [{cause.code}]")
        else:
            if not foreground:
                log.exception("daemon-failed")
            report.failed(f"{type(cause).__name__}: {words_of(cause)}")
        return FAILED
    return 0


class _Readiness:
    """The pipe to the client that started the daemon: one word, then closed. Else silent."""

    def __init__(self) -> None:
        text = os.environ.pop("CLAUDE_VM_READY_FD", "")
        self._descriptor = int(text) if text.isdigit() else None

    def ready(self) -> None:
        """The daemon listens."""
        self._say("ok\n")

    def failed(self, reason: str, words: str = "") -> None:
        """The daemon does not come up. `words` are for people, where the reason is not."""
        if self._descriptor is None:
            sys.stderr.write(printed([f"claude-vm daemon: {words or reason}"]))
        self._say(f"{reason}\n")

    def _say(self, text: str) -> None:
        if self._descriptor is not None:
            with suppress(OSError):  # the client is gone; the daemon serves others
                os.write(self._descriptor, text.encode())
                os.close(self._descriptor)
            self._descriptor = None
