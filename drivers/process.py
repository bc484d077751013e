"""Programs that drivers run, and processes that they must find again.

`run_tool` is for programs that end by themselves: their output is bounded, and nothing of them is left when
the call is over, however it ends. `ProcessIdentity` and `find_marked` are for programs that outlive us, such
as a VM: a pid alone is no name, because the kernel uses it again.
"""

import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from subprocess import DEVNULL
from typing import IO, Final, NamedTuple

import anyio
import msgspec
import psutil

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
    with _pipe() as out_pipe, _pipe() as err_pipe, _pipe(we_write=True) as in_pipe:
        try:
            process = await anyio.open_process(
                list(argv),
                stdin=DEVNULL if input is None else in_pipe.read_end,
                stdout=out_pipe.write_end,
                stderr=err_pipe.write_end,
                cwd=cwd,
                env=env,
                start_new_session=True,
                pass_fds=pass_fds,
            )
        except OSError as error:
            raise _not_started(argv[0], error, cwd, env, missing_hint) from error
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
    done = Completed(process.returncode or 0, out.end(), err.end())
    if deadline.cancelled_caught:
        raise DriverError(f"{argv[0]} did not end within {timeout_s:g} s", detail=done.last_lines)
    if check and done.returncode:
        raise DriverError(f"{argv[0]} failed ({_status(done.returncode)})", detail=done.last_lines)
    return done


def kill_group(pid: int) -> None:
    """Kill the process group that `pid` leads (or led). Does nothing when there is none."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


class _Pipe(NamedTuple):
    read_end: IO[bytes]
    write_end: IO[bytes]


@contextmanager
def _pipe(*, we_write: bool = False) -> Iterator[_Pipe]:
    """Give a pipe whose ends are closed with the block. Asyncio's own would stay open with a straggler."""
    read_fd, write_fd = os.pipe()
    # Only our end: the program is a stranger to pipes that don't block.
    os.set_blocking(write_fd if we_write else read_fd, False)
    with os.fdopen(read_fd, "rb", 0) as read_end, os.fdopen(write_fd, "wb", 0) as write_end:
        yield _Pipe(read_end, write_end)


def _not_started(
    program: str, error: OSError, cwd: Path | None, env: Mapping[str, str], missing_hint: str
) -> DriverError:
    """Return why a program can't be started."""
    if (
        isinstance(error, FileNotFoundError)
        and cwd is not None
        and os.fspath(error.filename) == os.fspath(cwd)
    ):
        return DriverError(f"the directory {cwd} does not exist")
    # A folder on the path that we may not read makes "no such file" a "permission denied".
    path = env.get("PATH", os.defpath)
    if isinstance(error, FileNotFoundError) or (
        "/" not in program and shutil.which(program, path=path) is None
    ):
        return ToolMissingError(f"{program} is not installed", hint=missing_hint)
    return DriverError(f"{program} can't be started: {error.strerror}")


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
        with _pidfd(self.pid) as fd:
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
        with _pidfd(self.pid) as fd:
            is_it = self.boot == boot_id() and _started(self.pid, even_zombie=True) == self.started
            if fd is not None and is_it:
                await anyio.wait_readable(fd)
                return
            while self.is_alive():  # noqa: ASYNC110 - no descriptor, so nothing to wait for
                await anyio.sleep(_POLL_S)  # nothing tells us on this system


@contextmanager
def _pidfd(pid: int) -> Iterator[int | None]:
    """Give a pidfd for the length of a block, or None where the system has none."""
    fd = None
    if hasattr(os, "pidfd_open"):
        with suppress(OSError):
            fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


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
