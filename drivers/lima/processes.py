"""The processes of a VM that Lima runs: found by the name of its instance, ended in the right order.

Beside QEMU these are `limactl` (which becomes the host agent), and what the host agent starts: ``ssh``, of
which one stays. They have the instance's name, or a path with it, among their arguments, and the name is
never used twice; what is short-lived has not, but is in the session that we made for the host agent. Lima's
own way to end them goes by files with process ids, which may be another's by now.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import psutil

from claude_vm.drivers.process import Marked, ProcessIdentity, find_marked

_PROGRAMS: Final = ("limactl", "qemu-system", "ssh", "sh", "python")
"""What the names of their programs begin with. Others may bear the name as well, such as an editor."""


def of_instance(folder: Path) -> list[ProcessIdentity]:
    """Return the processes of the instance in a folder of Lima's: those that start others come first."""
    found = [marked for marked in find_marked(folder.name) if _is_ours(marked, folder)]
    found.sort(key=lambda marked: _program(marked.argv) != "limactl")
    pids = [marked.pid for marked in found]
    # One that somebody has started in his terminal leads no session, so nothing else of his is taken along.
    leaders = {marked.pid for marked in found if _program(marked.argv) == "limactl"}
    if leaders:
        pids += [pid for pid in psutil.pids() if pid not in pids and _session(pid) in leaders]
    identities = [ProcessIdentity.of(pid) for pid in pids]
    return [identity for identity in identities if identity is not None]


def _session(pid: int) -> int:
    """Return the session of a process, 0 when it is gone or not ours to look at."""
    try:
        return os.getsid(pid)
    except OSError:
        return 0


def _program(argv: Sequence[str]) -> str:
    """The program's name; of a script that an interpreter runs, the script's."""
    words = [Path(word.partition(":")[0]).name for word in argv[:3]]
    return "limactl" if "limactl" in words else words[0]


def _is_ours(marked: Marked, folder: Path) -> bool:
    """Tell whether a process that bears an instance's name is of that instance."""
    if marked.pid == os.getpid() or not _program(marked.argv).startswith(_PROGRAMS):
        return False
    if any(str(folder) in word for word in marked.argv):
        return True
    try:
        return psutil.Process(marked.pid).environ().get("LIMA_HOME") == str(folder.parent)
    except psutil.Error:
        return False
