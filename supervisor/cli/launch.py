"""Starts the daemon, detached from everything of ours."""

# ruff: noqa: PTH123, PTH208 - pathlib takes too long to load

import contextlib
import os
import signal
import sys
from collections.abc import Mapping

from claude_vm.supervisor.cli.polling import READ, Poller
from claude_vm.supervisor.wire.client import RefusedError
from claude_vm.supervisor.wire.errors import WireError
from claude_vm.supervisor.wire.paths import home, log_path, make_private
from claude_vm.supervisor.wire.shortage import reported

READY_VARIABLE = "CLAUDE_VM_READY_FD"
READY_S = 60.0
"""How long a daemon may take to listen, in seconds."""

LONGEST_REPORT = 8192

_NAMES = frozenset(
    {
        "HOME",
        *("CLAUDE_VM_HOME", "CLAUDE_VM_IDLE_EXIT", "CLAUDE_VM_RAM_CLONES"),
        *("CLAUDE_VM_FAULT", "CLAUDE_VM_VALIDATE"),  # for tests
    }
)
"""Variables that are the daemon's own. All others (proxies, certificates, npm's) come with each command."""


class DaemonStartError(WireError):
    """The daemon does not come up. `hint` says where to look."""

    code = "daemon-failed"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class AnotherRunsError(WireError):
    """A daemon of this home runs already, or is about to end."""

    code = "already-running"


def daemon_environment(environ: Mapping[str, str], home: str) -> dict[str, str]:
    """Return the variables that a daemon is started with. It serves many clients: nobody's secrets go in."""
    kept = {name: value for name, value in environ.items() if name in _NAMES}
    if kept.get("CLAUDE_VM_HOME"):
        kept["CLAUDE_VM_HOME"] = home  # absolute: the daemon's directory is /
    return kept


def launch(module: str = "claude_vm.supervisor.daemon") -> None:
    """Start the daemon and return when it listens.

    Raises:
        AnotherRunsError: See there; connecting again is right.
        NotWritableError: It can't write what it must.
        RefusedError: It says why it does not serve us.
        LaunchError: It does not come up for another reason.
        OSError: We can't write what we must.
    """
    folder = home()
    log = log_path(folder)
    make_private(os.path.dirname(log))  # noqa: PTH120
    ready, report = os.pipe()
    environment = daemon_environment(os.environ, folder)
    environment[READY_VARIABLE] = str(report)
    # -P: no module of the directory that someone stands in; utf8: bytes of file names as clients send them.
    command = [sys.executable, "-P", "-X", "utf8", "-m", module]
    log_descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        child = os.fork()
        if child == 0:
            _detach(command, environment, report, log_descriptor)
    finally:
        os.close(log_descriptor)
        os.close(report)
    try:
        os.waitpid(child, 0)
        _judge(_read_report(ready), log)
    finally:
        os.close(ready)


def _detach(command: list[str], environment: dict[str, str], report: int, log: int) -> None:
    """In the child: become a daemon and never return. Two forks, so that it can't get a terminal again."""
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        for number in signal.valid_signals():
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
        os.chdir("/")
        os.umask(0o077)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        for name in os.listdir("/dev/fd"):
            if int(name) > 2 and int(name) != report:
                with contextlib.suppress(OSError):
                    os.close(int(name))
        os.set_inheritable(report, True)
        os.execve(command[0], command, environment)  # noqa: S606 - no shell, on purpose
    except BaseException as error:  # noqa: BLE001 - nothing of the parent may run in this process
        os.write(report, f"can't be started: {error}\n".encode(errors="replace"))
    finally:
        os._exit(127)


def _read_report(ready: int) -> str:
    """Return what the daemon says about its start, to the end of its pipe."""
    text = b""
    poller = Poller()
    while poller.wait({ready: READ}, READY_S):
        data = os.read(ready, LONGEST_REPORT)
        text += data
        if not data or len(text) > LONGEST_REPORT:
            return text.decode("utf-8", "replace").strip()
    raise DaemonStartError(f"the daemon is not ready after {READY_S:.0f} s", f"see {log_path(home())}")


def _judge(report: str, log: str) -> None:
    if report == "ok":
        return
    if report.startswith(AnotherRunsError.code):
        raise AnotherRunsError(report)
    if short := reported(report):
        raise short
    if report.startswith("{"):
        raise RefusedError.of(report.encode())
    reason = report or _last_line(log) or "it ended without a message"
    raise DaemonStartError(f"the daemon does not start: {reason}", f"see {log}")


def _last_line(log: str) -> str:
    with contextlib.suppress(OSError), open(log, "rb") as file:
        file.seek(max(os.fstat(file.fileno()).st_size - 4096, 0))
        lines = file.read().decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
    return ""
