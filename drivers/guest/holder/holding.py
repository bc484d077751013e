"""All shells of one guest, and the program that holds them."""

import os
import pwd
import selectors
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from .connection import Connection
from .frames import RefusedError
from .listening import TABLES
from .loop import Loop
from .remaining import adopt_orphans, children
from .shell import Shell

MAX_SHELLS = 64
MAX_CONNECTIONS = 128
LIBRARY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
"""Where the launcher is."""
PASSED_ON = ("HOME", "CLAUDE_VM_RUN")
"""Variables of the holder that shells get, where they stand for other places than a guest's."""
TERM = "xterm-256color"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CHUNK = 1 << 16


class Holder:
    """All shells of one guest.

    `terminal_argv` and `pipes_argv` are the commands of the two kinds of shells, absolute; `environment` is
    what every shell is given. `tables` are the files in which the system lists its TCP sockets. `adopts` says
    that orphans become this process's children, and that it has no other children than shells and these.
    """

    def __init__(
        self,
        loop: Loop,
        *,
        terminal_argv: Sequence[str],
        pipes_argv: Sequence[str],
        environment: Mapping[str, str],
        tables: Sequence[str] = TABLES,
        adopts: bool = False,
    ) -> None:
        self.loop = loop
        self.adopts = adopts
        self.tables = tables
        self.terminal_argv = terminal_argv
        self.pipes_argv = pipes_argv
        self.environment = dict(environment)
        self.shells: set[Shell] = set()
        self.connections: set[Connection] = set()
        self._in_turn: list[str] = []

    def accept(self, stream: socket.socket) -> None:
        """Serve a connection."""
        if len(self.connections) >= MAX_CONNECTIONS:
            stream.close()
            return
        self.connections.add(Connection(self, stream))

    def prime(self, kind: str, term: str = TERM) -> Shell:
        """Start a shell that waits.

        Raises:
            RefusedError: There are too many, there is no such kind, or it can't be started.
        """
        if kind not in {"pty", "pipes"} or not (term.isascii() and term.isprintable() and len(term) <= 64):
            raise RefusedError("no such kind of shell")
        if len(self.shells) >= MAX_SHELLS:
            raise RefusedError("too many shells")
        try:
            shell = Shell(self, kind, term)
        except OSError as error:
            raise RefusedError(f"no shell can be started: {error.strerror}") from error
        self.shells.add(shell)
        return shell

    def prime_in_turn(self, kinds: Sequence[str]) -> None:
        """Start shells that wait, each when the former one does: they compete with the handshake of SSH."""
        self._in_turn = list(kinds)
        self.prime_next()

    def prime_next(self) -> None:
        """Start the next shell of those in turn, if there is one."""
        while self._in_turn:
            with suppress(RefusedError):
                self.prime(self._in_turn.pop(0))
                return

    def primed(self, kind: str, term: str) -> Shell:
        """Return a shell that waits and that nobody has, made anew when there is none for this terminal.

        Raises:
            RefusedError: As `prime`.
        """
        for shell in list(self.shells):
            if shell.kind == kind and not shell.session and shell.connection is None and shell.status is None:
                if kind == "pipes" or shell.term == term:
                    return shell
                shell.close()
        if kind in self._in_turn:
            self._in_turn.remove(kind)
        return self.prime(kind, term)

    def session(self, name: str) -> Shell:
        """Return a session's shell.

        Raises:
            RefusedError: There is none.
        """
        for shell in self.shells:
            if shell.session == name and name:
                return shell
        raise RefusedError("no such session")

    def listing(self) -> list[dict[str, Any]]:
        """Return the sessions that there are, also ended ones."""
        return [{"session": s.session, "kind": s.kind, "status": s.status} for s in self.shells if s.session]

    def adopted(self) -> list[int]:
        """Return the processes that were left to this one."""
        if not self.adopts:
            return []
        shells = {shell.pid for shell in self.shells}
        return [process for process in children(os.getpid()) if process not in shells]

    def collect(self) -> None:
        """Wait for the adopted processes that have ended. Shells wait for their own."""
        while self.adopts:
            try:
                dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if dead is None or any(shell.pid == dead.si_pid for shell in self.shells if shell.status is None):
                return  # the shell comes here again
            with suppress(ChildProcessError):
                os.waitpid(dead.si_pid, os.WNOHANG)

    def close(self) -> None:
        """End all shells, and what was left behind."""
        self._in_turn.clear()
        for process in self.adopted():
            with suppress(OSError):
                os.kill(process, signal.SIGKILL)
        for shell in list(self.shells):
            shell.close()
        for connection in list(self.connections):
            connection.close()


def main() -> None:
    """Serve at the descriptor that the helper names, for ever; it says on stdin what else it wants.

    ``prime``: start the usual shells, because a supervisor will ask for them soon. ``forget``: end all,
    before a snapshot is taken.
    """
    user = pwd.getpwuid(os.getuid())
    os.chdir(os.environ.get("HOME", user.pw_dir))
    os.umask(0o022)
    loop = Loop()
    holder = Holder(
        loop,
        terminal_argv=("/bin/bash", "--rcfile", f"{LIBRARY}/session", "-i"),
        pipes_argv=("/bin/bash", f"{LIBRARY}/session"),
        environment={
            "HOME": user.pw_dir,
            "USER": user.pw_name,
            "LOGNAME": user.pw_name,
            "SHELL": user.pw_shell,
            "PATH": _PATH,
            **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
        },
        adopts=True,
    )
    adopt_orphans()
    signal.signal(signal.SIGCHLD, lambda *_: loop.call(holder.collect))
    listener = socket.socket(fileno=int(sys.argv[1]))
    listener.set_inheritable(False)
    listener.setblocking(False)

    def accept(_: int) -> None:
        with suppress(OSError):
            holder.accept(listener.accept()[0])

    def listen_to_helper(_: int) -> None:
        words = os.read(0, _CHUNK)
        if not words:
            loop.watch(0, 0, listen_to_helper)
        for word in words.split():
            if word == b"forget":
                holder.close()
            elif word == b"prime":
                holder.prime_in_turn(("pty", "pipes"))

    loop.watch(listener.fileno(), selectors.EVENT_READ, accept)
    loop.watch(0, selectors.EVENT_READ, listen_to_helper)
    while True:
        loop.turn()
