"""What still works in a guest when a session's main process has ended, as the kernel tells it.

The holder adopts what its shells' processes leave behind: an orphan becomes its child, whatever session,
process group or user it has given itself. So what remains are its children that are no shells. What systemd
was asked to run is systemd's.
"""

import ctypes
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from typing import TypedDict

CHECK_S = 0.025
CHECKS = 10
"""How often, and how many times, it is looked whether something is still there: what is just dying goes."""
MOST_TOLD = 8
MOST_SEEN = 256
COMMAND_LIMIT = 200
"""Bytes of a command line that are told."""
_PR_SET_CHILD_SUBREAPER = 36
_SHELLS = frozenset((b"ash", b"bash", b"dash", b"sh", b"zsh"))


class Remaining(TypedDict):
    """How many processes there are, `MOST_SEEN` at most, and the command lines of the first ones."""

    count: int
    commands: list[str]


def adopt_orphans(adopt: bool = True) -> None:
    """Let orphans among this process's descendants become its children instead of init's, or no more."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0)


class Orphans:
    """The children of this process that it has not started itself, if it adopts any.

    `own` are those that it has started and not waited for yet: it has no others.
    """

    def __init__(self, *, adopts: bool) -> None:
        self.own: set[int] = set()
        self._adopts = adopts

    def listed(self) -> list[int]:
        """Return them, dead ones that nobody has waited for among them."""
        return (
            [process for process in children(os.getpid()) if process not in self.own] if self._adopts else []
        )

    def collect(self) -> None:
        """Wait for those that have ended; for its own somebody else does, who calls this again."""
        while self._adopts:
            try:
                dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if dead is None or dead.si_pid in self.own:
                return
            with suppress(ChildProcessError):
                os.waitpid(dead.si_pid, os.WNOHANG)

    def kill(self) -> None:
        """End them."""
        for process in self.listed():
            with suppress(OSError):
                os.kill(process, signal.SIGKILL)


def children(process: int) -> list[int]:
    """Return the children of a process, dead ones that nobody has waited for among them."""
    found: list[int] = []
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{process}/task"):
            with suppress(OSError), open(f"/proc/{process}/task/{thread}/children", "rb") as file:
                found += map(int, file.read().split())
    return found


def remaining(processes: Sequence[int]) -> Remaining:
    """Return which of these processes and their descendants work.

    A shell that has children waits for them, and says less than they do: it is left out.
    """
    waiting = list(processes)
    seen = count = 0
    commands: list[str] = []
    while waiting and seen < MOST_SEEN:
        process = waiting.pop(0)
        seen += 1
        command = b""
        with suppress(OSError), open(f"/proc/{process}/cmdline", "rb") as file:
            command = file.read(COMMAND_LIMIT).rstrip(b"\0")
        below = children(process)
        waiting += below
        program = os.path.basename(command.partition(b"\0")[0]).lstrip(b"-")
        if not command or (below and program in _SHELLS):  # a dead one has no command line any more
            continue
        count += 1
        if len(commands) < MOST_TOLD:
            commands.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return {"count": count, "commands": commands}
