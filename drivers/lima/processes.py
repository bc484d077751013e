"""The processes of a VM that Lima runs: found by the name of its instance, ended in the right order.

Beside QEMU these are `limactl` (which becomes the host agent), and what the host agent starts: ``ssh``, of
which one stays. They have the instance's name, or a path with it, among their arguments, and the name is
never used twice; what is short-lived has not, but is in the session that we made for the host agent. Lima's
own way to end them goes by files with process ids, which may be another's by now.
"""

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

import psutil

from claude_vm.drivers.lima.instance import STAND_IN
from claude_vm.drivers.process import Marked, ProcessIdentity, find_marked
from claude_vm.drivers.vm import confine

_SHELLS: Final = ("sh", "bash", "dash")
_BARE: Final = ("-I", "-S")
_CONFINE: Final = Path(confine.__file__).name


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
    """The program's name; of a `limactl` that an interpreter runs, the script's."""
    words = [Path(word.partition(":")[0]).name for word in argv[:3]]
    return "limactl" if words[0].startswith(("python", *_SHELLS)) and "limactl" in words else words[0]


def _is_ours(marked: Marked, folder: Path) -> bool:
    """Tell whether a process that bears an instance's name is of that instance.

    Others bear it as well, such as an editor, or a shell of the user's that looks at the logs.
    """
    program = _program(marked.argv)
    if marked.pid == os.getpid():
        return False
    if program.startswith(("limactl", "qemu-system")):
        named = any(str(folder) in word for word in marked.argv)
        return named or _lima_home(marked.pid) == str(folder.parent)
    return _begins_qemu(marked.argv, folder) or (program == "ssh" and _is_limas_ssh(marked.argv, folder))


def _lima_home(pid: int) -> str | None:
    """Return the ``LIMA_HOME`` of a process; None when it has none, or can't be looked at."""
    try:
        return psutil.Process(pid).environ().get("LIMA_HOME")
    except psutil.Error:
        return None


def _begins_qemu(argv: Sequence[str], folder: Path) -> bool:
    """Tell whether it is about to become the instance's QEMU: our script, or what that becomes first."""
    if _program(argv).startswith("python"):
        confines = tuple(argv[1:3]) == _BARE and [Path(word).name for word in argv[3:4]] == [_CONFINE]
        return confines and any(f"{folder}/" in word for word in argv)
    return _program(argv) in _SHELLS and argv[1:2] == [str(folder / STAND_IN)]


def _is_limas_ssh(argv: Sequence[str], folder: Path) -> bool:
    """Tell whether it has its socket or its settings in the folder. The one that stays is called by that."""
    if argv[0].startswith(f"ssh: {folder}/"):
        return True
    given = (
        value
        for option, value in pairwise(argv)
        if option in {"-F", "-S"} or (option == "-o" and value.startswith("ControlPath="))
    )
    return any(f"{folder}/" in value for value in given)
