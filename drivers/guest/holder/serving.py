"""The program that holds a guest's shells: what starts it, and what it is told by the helper."""

import os
import pwd
import selectors
import signal
import socket
import sys
from contextlib import suppress

from .connection import Connections
from .holding import Holder
from .loop import Loop
from .remaining import adopt_orphans

_LIBRARY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
"""Where the launcher is."""
_PASSED_ON = ("HOME", "CLAUDE_VM_RUN")
"""Variables of the holder that shells get, where they stand for other places than a guest's."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CHUNK = 1 << 16


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
        terminal_argv=("/bin/bash", "--rcfile", f"{_LIBRARY}/session", "-i"),
        pipes_argv=("/bin/bash", f"{_LIBRARY}/session"),
        environment={
            "HOME": user.pw_dir,
            "USER": user.pw_name,
            "LOGNAME": user.pw_name,
            "SHELL": user.pw_shell,
            "PATH": _PATH,
            **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
        },
        adopts=True,
    )
    connections = Connections(holder)
    adopt_orphans()
    signal.signal(signal.SIGCHLD, lambda *_: loop.call(holder.orphans.collect))
    listener = socket.socket(fileno=int(sys.argv[1]))
    listener.set_inheritable(False)
    listener.setblocking(False)

    def accept(_: int) -> None:
        with suppress(OSError):
            connections.accept(listener.accept()[0])

    def listen_to_helper(_: int) -> None:
        words = os.read(0, _CHUNK)
        if not words:
            loop.watch(0, 0, listen_to_helper)
        for word in words.split():
            if word == b"forget":
                holder.close()
                connections.close()
            elif word == b"prime":
                holder.prime_in_turn(("pty", "pipes"))

    loop.watch(listener.fileno(), selectors.EVENT_READ, accept)
    loop.watch(0, selectors.EVENT_READ, listen_to_helper)
    while True:
        loop.run_once()
