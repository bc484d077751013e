"""From a socket to an exit status: connects, starts the daemon when there is none, and relays."""

# ruff: noqa: PTH120 - pathlib takes too long to load

import fcntl
import gc
import os
import socket
import time

from claude_vm.supervisor.cli.invocation import invocation
from claude_vm.supervisor.statuses import INTERRUPTED
from claude_vm.supervisor.wire.client import (
    DaemonConnection,
    HungUpError,
    NoAnswerError,
    RefusedError,
    invoke,
)
from claude_vm.supervisor.wire.errors import WireError
from claude_vm.supervisor.wire.messages import VERSION_MISMATCH_IDLE
from claude_vm.supervisor.wire.paths import (
    check_private,
    home,
    make_private,
    runtime_directory,
    socket_path,
)

PATIENCE_S = 60.0
"""How long to wait for a daemon that ends, in seconds."""

STEP_S = 0.05
"""How often to look whether it has ended: nothing tells us."""


TYPE_CHECKING = False  # the module of that name takes long to load
if TYPE_CHECKING:
    from claude_vm.supervisor.wire.shortage import NotWritableError

DEATHS = 1
"""How many daemons may die before they have said anything, before a client gives up."""


class DaemonBusyError(WireError):
    """A daemon that should have ended is still there."""

    code = "daemon-ending"


def connect() -> socket.socket | None:
    """Return a socket that is connected to the daemon, or None when none runs.

    Raises:
        UnsafePathError: The socket's directory is not ours alone.
        NoAnswerError: The daemon accepts no connection.
    """
    path = socket_path(home())
    try:
        check_private(os.path.dirname(path))
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(path)
        except BaseException:
            connection.close()
            raise
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except (BlockingIOError, PermissionError) as error:
        raise NoAnswerError(f"the daemon at {path} accepts no connection: {error.strerror}") from error
    return connection


def connect_or_launch() -> socket.socket:
    """Return a socket that is connected to the daemon, which is started when none runs.

    Raises:
        NotWritableError: It can't be started, because we, or it, can't write what is needed.
        WireError: It does not come up, or its directory is not ours alone.
    """
    from claude_vm.supervisor.wire import shortage  # noqa: PLC0415 - rarely needed

    try:
        return _connect_or_launch()
    except OSError as error:
        if short := shortage.of(error, home()):
            raise short from error
        raise


def _connect_or_launch() -> socket.socket:
    from claude_vm.supervisor.cli.launch import AnotherRunsError, launch  # noqa: PLC0415 - rarely needed

    make_private(runtime_directory(home()))
    directory = os.path.join(home(), "run")  # noqa: PTH118
    make_private(directory)
    lock = os.open(os.path.join(directory, "launch.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)  # noqa: PTH118
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # clients that come together start one daemon together
        deadline = time.monotonic() + PATIENCE_S
        while True:
            connection = connect()
            if connection is not None:
                return connection
            try:
                launch()
            except AnotherRunsError as error:
                if time.monotonic() > deadline:
                    raise DaemonBusyError(f"a daemon is shutting down, but does not end: {error}") from error
                time.sleep(STEP_S)
    finally:
        os.close(lock)


def run_by_daemon(argv: list[str]) -> int:
    """Run the words by the daemon, which is started if none runs; return the exit status.

    Raises:
        WireError: The daemon does not come up, says no, or nothing, or ends in the middle.
        EndedBySignalError: A signal ends this process; all is restored.
    """
    from claude_vm.supervisor.wire.shortage import NotWritableError  # noqa: PLC0415 - rarely needed

    try:
        connection = connect_or_launch()
    except NotWritableError as short:
        return _stand_in(argv, short)
    return attend(connection, argv)


def _stand_in(argv: list[str], short: "NotWritableError") -> int:
    """Do what can be done where no daemon can be started, because it could write nothing.

    That takes the daemon's lock. Another client may have it right now; or a daemon, if there is room by now.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return run_in_process(argv, short)
        except RefusedError as error:
            if error.code != "already-running" or time.monotonic() > deadline:
                raise
        time.sleep(STEP_S)
        connection = connect()
        if connection is not None:
            return attend(connection, argv)


def attend(connection: socket.socket, argv: list[str]) -> int:
    """Run the words over a connected socket; return the exit status.

    A daemon of another version that has nothing to do ends, and one of ours takes its place.

    Raises:
        WireError: The daemon says no, or nothing, or ends in the middle.
        EndedBySignalError: A signal ends this process; all is restored.
    """
    try:
        link = _welcome(connection, argv)
    except WireError as error:
        from claude_vm.supervisor.wire.shortage import NotWritableError  # noqa: PLC0415 - rarely needed

        if not isinstance(error, NotWritableError):
            raise
        return _stand_in(argv, error)
    # Only now: while this loads, the daemon works already.
    from claude_vm.supervisor.cli.relay import InterruptedTwiceError, Relay  # noqa: PLC0415
    from claude_vm.supervisor.cli.signals import Signals  # noqa: PLC0415

    gc.enable()
    try:
        with Signals() as signals:
            return Relay(link, signals).run()
    except InterruptedTwiceError:
        return INTERRUPTED
    finally:
        link.close()


def run_in_process(argv: list[str], short: "NotWritableError | None" = None) -> int:
    """Run the words by a supervisor inside this process (``--no-daemon``); return the exit status.

    With `short` it writes nothing, and stands in for a daemon that can't be started for that reason.
    Returns, or raises, only when nothing of the command is left.

    Raises:
        WireError: The supervisor does not come up.
        EndedBySignalError: A signal ends this process.
    """
    from claude_vm.supervisor.daemon.process.in_client import serve_one  # noqa: PLC0415 - takes long to load

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    wait = serve_one(theirs, short)
    try:
        return attend(ours, argv)
    finally:
        wait()


def _welcome(connection: socket.socket, argv: list[str]) -> DaemonConnection:
    message = invocation(argv)
    deadline = time.monotonic() + PATIENCE_S
    deaths = 0
    while True:
        try:
            return invoke(connection, message)
        except HungUpError:
            # It died just now, of something else than of us, if the next one does not.
            deaths += 1
            if deaths > DEATHS:
                raise
        except RefusedError as error:
            if error.code != VERSION_MISMATCH_IDLE or time.monotonic() > deadline:
                raise
        time.sleep(STEP_S)
        connection = connect_or_launch()
