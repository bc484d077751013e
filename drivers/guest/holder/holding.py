"""All shells of one guest."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from .frames import FrameError
from .loop import Loop
from .remaining import Orphans
from .shell import HeldShell

MAX_SHELLS = 64
TERM = "xterm-256color"


class Holder:
    """All shells of one guest.

    `terminal_argv` and `pipes_argv` are the commands of the two kinds of shells, absolute; `environment` is
    what every shell is given. `adopts` says that orphans become this process's children, and that it has no
    other children than shells and these.
    """

    def __init__(
        self,
        loop: Loop,
        *,
        terminal_argv: Sequence[str],
        pipes_argv: Sequence[str],
        environment: Mapping[str, str],
        adopts: bool = False,
    ) -> None:
        self.loop = loop
        self.orphans = Orphans(adopts=adopts)
        self.terminal_argv = terminal_argv
        self.pipes_argv = pipes_argv
        self.environment = dict(environment)
        self.shells: set[HeldShell] = set()
        self._in_turn: list[str] = []

    def prime(self, kind: str, term: str = TERM) -> HeldShell:
        """Start a shell that waits.

        Raises:
            RefusedError: There are too many, there is no such kind, or it can't be started.
        """
        if kind not in {"pty", "pipes"} or not (term.isascii() and term.isprintable() and len(term) <= 64):
            raise FrameError("no such kind of shell")
        if len(self.shells) >= MAX_SHELLS:
            raise FrameError("too many shells")
        try:
            shell = HeldShell(
                self.loop,
                self.orphans,
                kind,
                term,
                argv=self.terminal_argv if kind == "pty" else self.pipes_argv,
                environment=self.environment,
                freed=self._freed,
            )
        except OSError as error:
            raise FrameError(f"no shell can be started: {error.strerror}") from error
        self.shells.add(shell)
        return shell

    def prime_in_turn(self, kinds: Sequence[str]) -> None:
        """Start shells that wait, each when the former one does: they compete with the handshake of SSH."""
        self._in_turn = list(kinds)
        self._prime_next()

    def _freed(self, shell: HeldShell) -> None:
        if shell.closed:
            self.shells.discard(shell)
        self._prime_next()

    def _prime_next(self) -> None:
        """Start the next shell of those in turn, if there is one."""
        while self._in_turn:
            with suppress(FrameError):
                self.prime(self._in_turn.pop(0))
                return

    def primed(self, kind: str, term: str) -> HeldShell:
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

    def session(self, name: str) -> HeldShell:
        """Return a session's shell.

        Raises:
            RefusedError: There is none.
        """
        for shell in self.shells:
            if shell.session == name and name:
                return shell
        raise FrameError("no such session")

    def listing(self) -> list[dict[str, Any]]:
        """Return the sessions that there are, also ended ones."""
        return [{"session": s.session, "kind": s.kind, "status": s.status} for s in self.shells if s.session]

    def begin(self, shell: HeldShell, session: str, size: Sequence[int]) -> None:
        """Let a shell that waits be a session.

        Raises:
            RefusedError: It does not wait, or there is a session of this name.
        """
        if any(other.session == session for other in self.shells if other is not shell):
            raise FrameError("there is a session of this name")
        shell.become(session, size)

    def close(self) -> None:
        """End all shells, and what was left behind."""
        self._in_turn.clear()
        self.orphans.kill()
        for shell in list(self.shells):
            shell.close()
