"""Where programs of this host are looked for: in those folders of a ``PATH`` into which no guest can put any.

A ``PATH`` is made for a shell that stands in a project: an empty or relative entry means whatever folder that
is, and entries such as ``PROJECT/.venv/bin`` are common. What stands there, a guest may have written. So an
entry counts only if it is absolute, and if neither it nor any link on the way to it lies in a folder that is,
or was, writable in a guest; the same is asked of each program that is found. Folders are kept by the names
that they have without links, so that nobody can exchange one later.

What we start gets the same folders as its ``PATH``: `limactl` looks for ``ssh`` there, a script for its
interpreter.
"""

import contextlib
import os
import pwd
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from claude_vm.drivers.errors import ToolMissingError

MORE: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Folders in which some programs are, and which are not in every user's path."""

Guard = Callable[[str, tuple[int, int]], bool]
"""Tells of a directory, by its path without links and its device and inode, whether guests can write it,
or could."""

Guards = Callable[[], Guard]
"""Returns what is guarded at that moment. Never raises."""

_SYSTEM: Final = "/usr/local/bin:/usr/bin:/bin"
_MOST_LINKS: Final = 40
_MOST_INTERPRETERS: Final = 5
_LONGEST_LINE: Final = 256
_MOST_TOLD: Final = 3


class Programs:
    """The folders of one ``PATH`` in which programs are looked for, first to last, each time anew.

    What guests can write is asked anew each time, too: these live longer than the command that brought them,
    and a session may begin in one of the folders. `remarks` says which entries and programs were left out,
    and why, as far as it has come to that.
    """

    def __init__(self, folders: Iterable[str], guards: Guards, remarks: Iterable[str] = ()) -> None:
        self.folders = tuple(folders)
        self.remarks = list(remarks)
        self._guards = guards

    @property
    def path(self) -> str:
        """The ``PATH`` for what we start."""
        guard = self._guards()
        return os.pathsep.join(folder for folder in self.folders if not _decides(folder, guard))

    def settled(self) -> "Programs":
        """Return the same as of now: for another thread, in which what guests can write can't be asked."""
        guard = self._guards()
        return Programs(self.folders, lambda: guard, self.remarks)

    def environment(self) -> dict[str, str]:
        """Return the environment of a program that needs nothing of the user's."""
        return {"PATH": self.path, "LANG": "C", "HOME": "/"}

    def find(self, name: str) -> str | None:
        """Return the absolute path of a program, or None where there is none that may be run."""
        guard = self._guards()
        for folder in self.folders:
            found = f"{folder}/{name}"
            if not os.access(found, os.X_OK) or not os.path.isfile(found):  # noqa: PTH113 - it is asked often
                continue
            if guest := _decides(found, guard):
                self._remark(f"{found} is not run: guests can write to {guest}")
                continue
            if guest := _decides_interpreter(found, guard):
                self._remark(f"{found} is not run: guests can write to its interpreter ({guest})")
                continue
            return found
        return None

    def guest_at(self, path: str) -> str:
        """Return a folder by which a guest can change what is at a path, or what runs it; or ""."""
        guard = self._guards()
        return _decides(path, guard) or _decides_interpreter(path, guard)

    def need(self, name: str, hint: str) -> str:
        """Return the absolute path of a program.

        Raises:
            ToolMissingError: There is none; `hint` says how it is had.
        """
        found = self.find(name)
        if found is None:
            raise ToolMissingError(self.absence(name), hint=hint)
        return found

    def absence(self, *names: str) -> str:
        """Return that programs are not installed, and what was left out in looking for them."""
        told = "; ".join(self.remarks[:_MOST_TOLD])
        more = "; …" if len(self.remarks) > _MOST_TOLD else ""
        where = f"{'it is' if len(names) == 1 else 'they are'} in no folder of PATH"
        return f"{not_installed(*names)}: {where}" + (f" ({told}{more})" if told else "")

    def _remark(self, text: str) -> None:
        if text not in self.remarks:
            self.remarks.append(text)


class BuildEnvironment:
    """What an image is made with: programs, and what else of its maker's environment counts.

    `environ` has proxies, which may hold passwords: it is kept by nobody. And ``TMPDIR``, but for one where a
    guest could exchange what is made there.
    """

    def __init__(self, programs: Programs, environ: Mapping[str, str]) -> None:
        self.programs = programs
        self.environ = {name: value for name, value in environ.items() if is_proxy(name)}
        temporary = environ.get("TMPDIR", "")
        if temporary.startswith("/") and not programs.guest_at(temporary):
            self.environ["TMPDIR"] = temporary

    def __repr__(self) -> str:
        """No value of a variable."""
        return f"Surroundings({self.programs.path!r}, {sorted(self.environ)})"


def not_installed(*names: str) -> str:
    """Return that programs are not installed."""
    return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} not installed"


def is_proxy(name: str) -> bool:
    """Tell whether a variable names a proxy, or what goes by none."""
    return name.lower().endswith("_proxy")


def nobody_writes(_path: str, _identity: tuple[int, int]) -> bool:
    """Be a `Guard` of places that no guest has ever had."""
    return False


def guarding(folders: Iterable[Path], guard: Guard = nobody_writes) -> Guard:
    """Return a guard of folders, by name and by what they are now, and of all that another one guards."""
    paths: set[str] = set()
    identities: set[tuple[int, int]] = set()
    for folder in folders:
        paths.add(os.path.realpath(folder))
        if (status := _status(str(folder))) is not None:
            identities.add((status.st_dev, status.st_ino))

    def guarded(path: str, identity: tuple[int, int]) -> bool:
        return path in paths or identity in identities or guard(path, identity)

    return guarded


def search(path: str, guards: Guards = lambda: nobody_writes) -> Programs:
    """Return where programs are looked for with a ``PATH``, but for what guests can write.

    `guards` returns what says that, at any time. Never raises; what was left out is in the `remarks`.
    """
    guard = guards()
    folders: list[str] = []
    remarks: list[str] = []
    for entry in path.split(os.pathsep):
        if not entry.startswith("/"):
            why = "it is relative" if entry else "an empty entry means the current folder"
            remarks.append(f"'{entry}' in PATH is skipped: {why}")
        elif guest := _decides(entry, guard):
            remarks.append(f"'{entry}' in PATH is skipped: guests can write to {guest}")
        else:
            folders.append(os.path.realpath(entry))
    folders += [os.path.realpath(folder) for folder in MORE]
    return Programs(dict.fromkeys(folders), guards, dict.fromkeys(remarks))


def own() -> Programs:
    """Return where this process would find programs, if it stands in no project: for what has no client."""
    return search(os.environ.get("PATH", os.defpath))


def system() -> Programs:
    """Return the system's own folders alone: for what is done before any client has come."""
    return search(_SYSTEM)


def user_environment(programs: Programs) -> dict[str, str]:
    """Return who the user is, for a program that wants to know; `programs` are what it finds."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = str(os.getuid())
    return {"PATH": programs.path, "HOME": str(Path.home()), "USER": name, "LOGNAME": name}


def _decides(path: str, guard: Guard) -> str:
    """Return a folder of guests by which one can decide what a path leads to, or "".

    A guest can do there what our user can: what is neither ours nor open to us, it can't have changed. So a
    session in ``/`` takes away no program of the system's.
    """
    if guard is nobody_writes:
        return ""
    with contextlib.suppress(OSError):  # a circle of links; nothing can be run there
        for place in _way(path):
            if (found := _around(place, guard)) and _may_change(place):
                return found
    return ""


def _decides_interpreter(path: str, guard: Guard) -> str:
    """Return how a guest can decide which program runs a script, or "".

    That is a folder of guests, or an interpreter's relative name: it means a file where one stands.
    """
    if guard is nobody_writes:
        return ""
    for _ in range(_MOST_INTERPRETERS):
        if (interpreter := _interpreter(path)) is None:
            return ""
        if not interpreter.startswith("/"):
            return f"'{interpreter}'"
        if guest := _decides(interpreter, guard):
            return guest
        path = interpreter
    return ""


def _interpreter(path: str) -> str | None:
    """Return the interpreter that a script names; None for what is no script, or can't be read.

    Source: execve(2).
    """
    try:
        with open(path, "rb", buffering=0, opener=_open_at_once) as file:
            line = file.read(_LONGEST_LINE).partition(b"\n")[0]
    except OSError:
        return None
    words = line.removeprefix(b"#!").split(maxsplit=1)
    return os.fsdecode(words[0]) if line.startswith(b"#!") and words else None


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _around(place: str, guard: Guard) -> str:
    """Return the folder of guests that a place without links is, or is in; "" if there is none."""
    while True:
        status = _status(place)
        if guard(place, (0, 0) if status is None else (status.st_dev, status.st_ino)):
            return place
        if place == "/":
            return ""
        place = os.path.dirname(place)  # noqa: PTH120


def _may_change(place: str) -> bool:
    """Tell whether our user can change a place, or may make itself able to."""
    found = _status(place)
    return found is not None and (
        os.geteuid() in {0, found.st_uid} or os.access(place, os.W_OK, effective_ids=True)
    )


def _status(place: str) -> os.stat_result | None:
    try:
        return os.stat(place)  # noqa: PTH116 - a Path for each step takes longer than the call
    except OSError:
        return None


def _way(path: str) -> Iterator[str]:
    """Yield each place that the system comes through on the way to where a path leads, that one too.

    Raises:
        OSError: It leads nowhere: too many links.
    """
    rest = path.split("/")[::-1]
    here = "/"
    links = 0
    while rest:
        name = rest.pop()
        if name in {"", "."}:
            continue
        here = os.path.dirname(here) if name == ".." else f"{here.rstrip('/')}/{name}"  # noqa: PTH120
        if not os.path.islink(here):  # noqa: PTH114 - likewise
            yield here
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError("too many links")
        rest += os.readlink(here).split("/")[::-1]  # noqa: PTH115
        here = "/" if os.readlink(here).startswith("/") else os.path.dirname(here)  # noqa: PTH115, PTH120
