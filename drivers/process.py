"""Programs that drivers run, and processes that they must find again.

`run_tool` is for programs that end by themselves: their output is bounded, and nothing of them is left when
the call is over, however it ends. `ProcessIdentity` and `find_marked` are for programs that outlive us, such
as a VM: a pid alone is no name, because the kernel uses it again.
"""

import os
import re
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from subprocess import DEVNULL
from typing import IO, Final, NamedTuple, Self

import anyio
import msgspec
import psutil
from anyio.abc import Process

from claude_vm.drivers.errors import DriverError, ToolMissingError

BARE: Final[Mapping[str, str]] = {"PATH": os.defpath, "LANG": "C", "HOME": "/"}
"""The environment of a program that is given none."""

OUTPUT_LIMIT: Final = 64 * 1024
LINE_LIMIT: Final = 4096
_CHUNK: Final = 64 * 1024
_LAST_LINES: Final = 20
_KILL_WAIT_S: Final = 5.0
_STRAGGLER_S: Final = 1.0
_POLL_S: Final = 0.2


class Completed(msgspec.Struct, frozen=True):
    """How a program ended. `stdout` and `stderr` are at most the last 64 KiB of each."""

    argv: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: bytes

    @property
    def last_lines(self) -> str:
        """The last lines of what it said, for an error: from stderr, or from stdout if there is none."""
        text = (self.stderr.strip() or self.stdout.strip()).decode(errors="replace")
        return "\n".join(text.splitlines()[-_LAST_LINES:])


class _Tail:
    """The end of a stream, and its lines as they come."""

    def __init__(self, on_line: Callable[[str], None] | None) -> None:
        self.data = bytearray()
        self._line = bytearray()
        self._on_line = on_line

    def feed(self, chunk: bytes) -> None:
        self.data += chunk
        if len(self.data) > 2 * OUTPUT_LIMIT:
            del self.data[:-OUTPUT_LIMIT]
        if self._on_line is None:
            return
        *lines, rest = re.split(rb"[\r\n]+", bytes(self._line) + chunk)
        self._line[:] = rest[:LINE_LIMIT]
        for line in lines:
            self._tell(line)

    def end(self) -> bytes:
        if self._line:
            self._tell(bytes(self._line))
        return bytes(self.data[-OUTPUT_LIMIT:])

    def _tell(self, line: bytes) -> None:
        if line and self._on_line is not None:
            self._on_line(line[:LINE_LIMIT].decode(errors="replace"))


async def run_tool(
    argv: Sequence[str],
    *,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    input: bytes | None = None,  # noqa: A002 - the word that subprocess.run uses
    on_line: Callable[[str], None] | None = None,
    cwd: Path | None = None,
    check: bool = True,
    pass_fds: Sequence[int] = (),
    missing_hint: str = "",
) -> Completed:
    """Run a program to its end and return what it said.

    It gets a session of its own, and stdin is empty unless `input` is given. `env` is its whole environment,
    without one it gets a bare one: nothing of ours goes along. A program without a slash in its name is
    looked for in the ``PATH`` there. `on_line` gets each line of both outputs, without its end and cut at
    4096 bytes; it must not wait or raise. The program gets the descriptors `pass_fds` under the same numbers.
    With `check` an exit status other than 0 is an error.

    When the call ends, by whatever cause (also cancellation), every process of the program's group has been
    killed. A process that made a session of its own escapes that, and loses its pipe to us.

    Raises:
        ToolMissingError: The program is not installed; `missing_hint` goes into the error.
        DriverError: It failed, or took longer than `timeout_s`; with its last lines.
    """
    out, err = _Tail(on_line), _Tail(on_line)
    env = BARE if env is None else env
    with _Pipe() as out_pipe, _Pipe() as err_pipe, _Pipe(we_write=True) as in_pipe:
        process = await _open(
            argv,
            stdin=DEVNULL if input is None else in_pipe.read_end,
            stdout=out_pipe.write_end,
            stderr=err_pipe.write_end,
            cwd=cwd,
            env=env,
            pass_fds=pass_fds,
            missing_hint=missing_hint,
        )
        try:
            for given in (in_pipe.read_end, out_pipe.write_end, err_pipe.write_end):
                given.close()
            with anyio.move_on_after(timeout_s) as deadline:
                async with anyio.create_task_group() as feeders:
                    feeders.start_soon(_send, in_pipe.write_end, input or b"")
                    async with anyio.create_task_group() as readers:
                        readers.start_soon(_read, out_pipe.read_end, out)
                        readers.start_soon(_read, err_pipe.read_end, err)
                        await process.wait()
                        # Whoever is left in the group would keep the pipes open.
                        kill_group(process.pid)
                        readers.cancel_scope.deadline = anyio.current_time() + _STRAGGLER_S
                    feeders.cancel_scope.cancel()
        finally:
            kill_group(process.pid)
            with anyio.move_on_after(_KILL_WAIT_S, shield=True):
                await process.wait()
    done = Completed(tuple(argv), process.returncode or 0, out.end(), err.end())
    if deadline.cancelled_caught:
        raise DriverError(f"{argv[0]} did not end within {timeout_s:g} s", detail=done.last_lines)
    if check and done.returncode:
        raise DriverError(f"{argv[0]} failed ({_status(done.returncode)})", detail=done.last_lines)
    return done


def kill_group(pid: int) -> None:
    """Kill the process group that `pid` leads (or led). Does nothing when there is none."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


class _Pipe:
    """A pipe whose ends are closed with the block. Asyncio's own would stay open with a straggler."""

    def __init__(self, *, we_write: bool = False) -> None:
        self._we_write = we_write

    def __enter__(self) -> Self:
        read_fd, write_fd = os.pipe()
        # Only our end: the program is a stranger to pipes that don't block.
        os.set_blocking(write_fd if self._we_write else read_fd, False)
        self.read_end, self.write_end = os.fdopen(read_fd, "rb", 0), os.fdopen(write_fd, "wb", 0)
        return self

    def __exit__(self, *_: object) -> None:
        self.read_end.close()
        self.write_end.close()


async def _open(
    argv: Sequence[str],
    *,
    stdin: IO[bytes] | int,
    stdout: IO[bytes],
    stderr: IO[bytes],
    env: Mapping[str, str],
    cwd: Path | None,
    pass_fds: Sequence[int],
    missing_hint: str,
) -> Process:
    """Start the program as the leader of a new session."""
    try:
        return await anyio.open_process(
            list(argv),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=cwd,
            env=env,
            start_new_session=True,
            pass_fds=pass_fds,
        )
    except FileNotFoundError as error:
        if cwd is not None and os.fspath(error.filename) == os.fspath(cwd):
            raise DriverError(f"the directory {cwd} does not exist") from error
        raise ToolMissingError(f"{argv[0]} is not installed", hint=missing_hint) from error
    except OSError as error:
        # A folder on the path that we may not read makes "no such file" a "permission denied".
        path = env.get("PATH", os.defpath)
        if "/" not in argv[0] and shutil.which(argv[0], path=path) is None:
            raise ToolMissingError(f"{argv[0]} is not installed", hint=missing_hint) from error
        raise DriverError(f"{argv[0]} can't be started: {error.strerror}") from error


async def _send(stream: IO[bytes], data: bytes) -> None:
    """Give the program its input; that it doesn't want all of it is its own affair."""
    rest = memoryview(data)
    with suppress(BrokenPipeError):
        while rest:
            await anyio.wait_writable(stream)
            rest = rest[os.write(stream.fileno(), rest[:_CHUNK]) :]
    stream.close()


async def _read(stream: IO[bytes], tail: _Tail) -> None:
    """Read a stream to its end."""
    while True:
        await anyio.wait_readable(stream)
        if not (chunk := os.read(stream.fileno(), _CHUNK)):
            return
        tail.feed(chunk)


def _status(returncode: int) -> str:
    """An exit status in words."""
    if returncode < 0:
        with suppress(ValueError):
            return f"died of {signal.Signals(-returncode).name}"
    return f"exit status {returncode}"


@lru_cache(maxsize=1)
def boot_id() -> str:
    """The name of this boot of the host: pids and start times mean nothing in another one."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return str(int(psutil.boot_time()))


class ProcessIdentity(msgspec.Struct, frozen=True):
    """One process, told from a later one with the same pid.

    `started` is only good for comparing: clock ticks since the boot where /proc tells them (a clock that is
    set doesn't change them), else a Unix time in seconds.
    """

    pid: int
    started: float
    boot: str

    @classmethod
    def of(cls, pid: int) -> "ProcessIdentity | None":
        """Return the identity of a running process, or None when there is none (a zombie is none)."""
        started = _started(pid)
        return None if started is None else cls(pid, started, boot_id())

    def is_alive(self) -> bool:
        """Tell whether this very process still runs."""
        return self.boot == boot_id() and _started(self.pid) == self.started

    def kill(self, signum: int = signal.SIGKILL) -> bool:
        """Send it a signal; return whether it was there to get it. Never hits another process on Linux.

        Raises:
            PermissionError: It is somebody else's.
        """
        with _PidFd(self.pid) as fd:
            # Alive *after* the descriptor was opened: so the descriptor is of this process.
            if not self.is_alive():
                return False
            try:
                if fd is None:
                    os.kill(self.pid, signum)
                else:
                    signal.pidfd_send_signal(fd, signum)
            except ProcessLookupError:
                return False
        return True

    async def wait(self) -> None:
        """Return once the process has ended; at once if it has. May be cancelled.

        A program with threads can show as a zombie while some of them still run, and nobody can collect it
        then. So its descriptor decides, not its state.
        """
        with _PidFd(self.pid) as fd:
            is_it = self.boot == boot_id() and _started(self.pid, even_zombie=True) == self.started
            if fd is not None and is_it:
                await anyio.wait_readable(fd)
                return
            while self.is_alive():  # noqa: ASYNC110 - no descriptor, so nothing to wait for
                await anyio.sleep(_POLL_S)  # nothing tells us on this system


class _PidFd:
    """A pidfd for the length of a block, or None where the system has none."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._fd: int | None = None

    def __enter__(self) -> int | None:
        if hasattr(os, "pidfd_open"):
            with suppress(OSError):
                self._fd = os.pidfd_open(self._pid)
        return self._fd

    def __exit__(self, *_: object) -> None:
        if self._fd is not None:
            os.close(self._fd)


def _started(pid: int, *, even_zombie: bool = False) -> float | None:
    """When a process started, or None if it doesn't run; a zombie runs only for those who ask for it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return None
    else:
        # After the name, which may contain anything: state is the 3rd field of all, the start time the 22nd.
        fields = stat[stat.rindex(b")") + 2 :].split()
        return None if fields[0] in {b"Z", b"X"} and not even_zombie else float(fields[19])
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


class Marked(NamedTuple):
    """A process that bears a mark."""

    pid: int
    argv: list[str]


def find_marked(mark: str) -> list[Marked]:
    """Return the running processes with `mark` as a whole word in an argument, and never ourselves.

    Only processes of our own uid count; root sees everybody's, because what it starts may run as another
    user. An argument list can be set by anyone: what is found is a candidate, no proof.
    """
    word = re.compile(rf"(?<![A-Za-z0-9_-]){re.escape(mark)}(?![A-Za-z0-9_-])")
    uid = os.getuid()
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            argv = process.cmdline()
            if process.pid == os.getpid() or not any(word.search(argument) for argument in argv):
                continue
            if process.status() != psutil.STATUS_ZOMBIE and uid in {0, process.uids().real}:
                found.append(Marked(process.pid, argv))
    return found
