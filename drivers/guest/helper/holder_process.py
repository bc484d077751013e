"""The helper's side of the sessions' holder: it starts it, and tells it when to prime and when to forget."""

import os
import socket
import sys
from contextlib import suppress
from subprocess import DEVNULL, PIPE, Popen

from . import paths
from .accounts import account, groups
from .files import make_directories
from .system import let_die

_PROGRAMS = os.path.dirname(os.path.dirname(__file__))


class HolderProcess:
    """The holder of the sessions' terminals and pipes (``holder``), which runs as the user."""

    def __init__(self) -> None:
        self.process: Popen[bytes] | None = None

    def start(self, name: str) -> None:
        """Start it, unless it runs; it goes on when the helper is started again."""
        path = f"{paths.HOLDER}/socket"
        user = account(name)[:2]
        if self.process is not None and self.process.poll() is None:
            return
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(path)
            except OSError:
                pass
            else:
                return
        make_directories(paths.HOLDER, user)
        os.chmod(paths.HOLDER, 0o700)
        if os.path.lexists(path):
            os.unlink(path)
        # It listens already, so that a supervisor that is quicker than the holder waits and is not refused.
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            os.chown(path, *user)
            os.chmod(path, 0o600)
            listener.listen(64)
            number = listener.fileno()
            self.process = Popen(
                [sys.executable, "-I", "-S", _PROGRAMS, "holder", str(number)],
                stdin=PIPE,
                stdout=DEVNULL,
                cwd="/",
                user=user[0],
                group=user[1],
                extra_groups=groups(name),
                start_new_session=True,
                env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
                pass_fds=(number,),
            )
        let_die(self.process.pid)

    def say(self, word: str) -> None:
        """Tell it something; one that does not listen is no reason to stop."""
        if self.process is not None and self.process.stdin is not None:
            with suppress(OSError):
                os.write(self.process.stdin.fileno(), word.encode() + b"\n")
