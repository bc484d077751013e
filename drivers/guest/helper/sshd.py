"""The helper's side of sshd: it starts it, and tells it its configuration when SSH may open.

A started sshd waits for its configuration, which comes through its standard input. So it can be part of a
snapshot without a host key and without having accepted anybody, and a clone is spared its start. Until then
connections wait in the kernel's queue. The random state that all clones of a snapshot share makes no secret:
for each connection sshd starts itself, or its `sshd-session`, anew from the file.
"""

import errno
import fcntl
import os
import select
import signal
import socket
import struct
import sys
import termios
import time
from contextlib import suppress
from typing import Any

from . import paths
from .files import read, replace
from .system import let_die

SSHD = "/usr/sbin/sshd"
CONFIGURATION = "/etc/ssh/sshd_config"
SESSION = "/usr/lib/openssh/sshd-session"
_LIVED_S = 1.0
_BEGINNING = b"UsePAM "
"""What a waiting sshd has read. If the helper dies now, this is all, and no configuration: it ends."""
_READY_S = 10.0

# sshd takes a socket from whoever starts it as systemd hands sockets over: number 3, for this very process.
_START = 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" -D -f /dev/stdin'
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


class Sshd:
    """The guest's sshd, which listens at a socket of the helper's.

    One that a former helper had started is ended; the connections that it served go on.
    """

    def __init__(self, port: int = 22) -> None:
        self._pid = 0
        self._input = -1
        self._started_at = 0.0
        self._open = False
        _end_former()
        self._listener = _listen(port)

    @property
    def down(self) -> bool:
        """Whether it should accept and can't."""
        return self._open and (not self._pid or self._input >= 0)

    def prepare(self) -> None:
        """End it and its connections, start it anew, and wait until it waits for its configuration.

        Connections that a former helper's sshd has accepted are not known any more, and go on.
        """
        self._open = False
        if self._pid:
            _kill(self._pid, signal.SIGSTOP)  # it accepts no more while its connections are looked for
            for process in _descendants(self._pid):
                _kill(process)
        self._end()
        self._start()
        deadline = time.monotonic() + _READY_S
        while _unread(self._input):
            if time.monotonic() > deadline:
                raise TimeoutError(0, "sshd reads no configuration", SSHD)
            time.sleep(0.01)

    def open(self) -> None:
        """Let it accept: with the host key that lies there now. If this fails, `reap` tries it again."""
        self._open = True
        rest = _rest_of_configuration()
        if self._input < 0:
            self._end()
            self._start()
        try:
            os.write(self._input, rest)  # at once: a pipe takes so little whole
        finally:
            self._close_input()

    def reap(self) -> None:
        """Start it again when it has ended; not at once when it ended at once."""
        if self._pid and os.waitpid(self._pid, os.WNOHANG)[0]:
            self._forget()
        if self.down and time.monotonic() > self._started_at + _LIVED_S:
            sys.stderr.write("sshd: started again\n")
            try:
                self.open()
            except OSError as error:
                sys.stderr.write(f"sshd: {error}\n")

    def _start(self) -> None:
        source, self._input = os.pipe()
        actions: list[Any] = [
            (os.POSIX_SPAWN_DUP2, source, 0),
            (os.POSIX_SPAWN_DUP2, self._listener.fileno(), 3),
            (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0),
        ]
        self._started_at = time.monotonic()
        try:
            self._pid = os.posix_spawn(
                "/bin/sh",
                ["sh", "-c", _START, SSHD],
                _ENVIRONMENT,
                file_actions=actions,
                setsid=True,
                setsigmask=[],
                setsigdef=[signal.SIGPIPE, signal.SIGCHLD, signal.SIGIO],
            )
        finally:
            os.close(source)
        # Before it has its configuration: it protects itself then, and its connections get what it had.
        let_die(self._pid)
        replace(paths.SSHD, b"%d" % self._pid, 0o600)
        os.write(self._input, _BEGINNING)

    def _end(self) -> None:
        if self._pid:
            _kill(self._pid)
            os.waitpid(self._pid, 0)
        self._forget()

    def _forget(self) -> None:
        self._pid = 0
        self._close_input()

    def _close_input(self) -> None:
        if self._input >= 0:
            os.close(self._input)
            self._input = -1


def _rest_of_configuration() -> bytes:
    # Clients that go away before they have logged in are no attack here: all of them come from the host.
    penalties = "PerSourcePenalties no\n" if os.path.exists(SESSION) else ""
    rest = f"no\n{penalties}{read(CONFIGURATION)}".encode()
    if len(rest) > select.PIPE_BUF:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), CONFIGURATION)
    return rest


def _end_former() -> None:
    """End the sshd of a helper that was killed: it has the port."""
    with suppress(OSError, ValueError):
        pid = int(read(paths.SSHD))
        # Once it listens it calls itself otherwise, with the same words in it.
        if "-D -f /dev/stdin" in read(f"/proc/{pid}/cmdline").replace("\0", " "):
            _kill(pid)


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    deadline = time.monotonic() + _READY_S
    while True:
        try:
            listener.bind(("0.0.0.0", port))  # noqa: S104 - the guest's only network is its host
            listener.listen(64)
        except OSError as error:
            # One that was killed has it for a moment yet.
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return listener


def _descendants(pid: int) -> list[int]:
    """Return what a process has started. What serves a connection of sshd is not only its child."""
    found = []
    with suppress(OSError):
        for child in read(f"/proc/{pid}/task/{pid}/children").split():
            found += [int(child), *_descendants(int(child))]
    return found


def _kill(pid: int, number: int = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _unread(pipe: int) -> int:
    """Return how many bytes a pipe's reader has not taken yet."""
    return int(struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, struct.pack("i", 0)))[0])
