"""Opens what a user names on the host, without being led astray by links that a guest has left.

A guest can put links into what it can write. A path that runs through such a folder could then lead anywhere:
``--mount ~/project/data`` to the user's keys. So a path is gone along component by component, each opened in
the directory before it. Links are followed as always outside of those folders. Beneath one of them a link
counts only if it stays inside; from the first link on, nothing leads out any more, ``..`` neither.

What is opened is a descriptor and the path without links that was gone along. Between two looks at one name a
guest may put something else there; a descriptor stays what it is.

Source: path_resolution(7); open(2) for ``O_PATH``.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from claude_vm.context.errors import LinkError
from claude_vm.context.regular_file import LOOK, read_open
from claude_vm.drivers.programs import Guard, nobody_writes

FileIdentity = tuple[int, int]
"""Device and inode of a directory."""

MAX_LINKS = 40
"""So many links are followed, as by Linux."""

MAX_COMPONENTS = 4096
"""So many names may be left to go along; more can only come from links that grow."""

_STEP: Final = LOOK | os.O_NOFOLLOW


class Opened(msgspec.Struct, frozen=True):
    """What a path led to: `path` has no link in it. The descriptor serves as a name; the block closes it."""

    path: Path
    descriptor: int
    status: os.stat_result

    @property
    def identity(self) -> FileIdentity:
        """Device and inode."""
        return self.status.st_dev, self.status.st_ino


@contextmanager
def opened(path: Path, guard: Guard = nobody_writes) -> Iterator[Opened]:
    """Open an absolute path of any kind for as long as the block lasts. Waits for nothing, and reads nothing.

    Raises:
        LinkError: A link leads out of where a guest can write.
        OSError: It is not there, or can't be reached.
    """
    walk = _Walk(path, guard)
    try:
        walk.go()
        yield Opened(Path(walk.here), walk.descriptor, os.fstat(walk.descriptor))
    finally:
        walk.close()


def real_path(path: Path, guard: Guard = nobody_writes) -> Path:
    """Return an existing path without links.

    Raises:
        LinkError: See `opened`.
        OSError: Likewise.
    """
    with opened(path, guard) as found:
        return found.path


def read_file(path: Path, limit: int, guard: Guard = nobody_writes) -> tuple[Path, bytes] | None:
    """Return a regular file's path without links, and its content.

    None for anything else: missing, a FIFO, a device, over `limit` bytes. Never waits.

    Raises:
        LinkError: See `opened`.
    """
    try:
        with opened(path, guard) as found:
            data = read_open(found.descriptor, limit)
    except (OSError, ValueError):
        return None
    return None if data is None else (found.path, data)


class _Walk:
    """The way along one path: the directories that were passed, and what is left to go."""

    def __init__(self, path: Path, guard: Guard) -> None:
        self._asked = path
        self._guard = guard
        self._left = list(reversed(path.parts[1:]))
        self._names: list[str] = []
        self._descriptors: list[int] = []
        self._guarded = [0]  # for each directory: how many names the innermost guarded one above it has
        self._floor = 0  # so many names stay: a link was followed beneath them
        self._links = 0
        self._last_link = ""

    @property
    def here(self) -> str:
        return "/" + "/".join(self._names)

    @property
    def descriptor(self) -> int:
        return self._descriptors[-1]

    def close(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()

    def go(self) -> None:
        self._descriptors.append(os.open(self._asked.anchor, os.O_DIRECTORY | _STEP))
        while self._left:
            name = self._left.pop()
            if name == "..":
                self._up()
            elif name not in {"", "."}:
                self._into(name)

    def _up(self) -> None:
        if self._floor and len(self._names) <= self._floor:
            self._refuse(self._last_link, os.path.dirname(self.here))  # noqa: PTH120 - text
        if self._names:
            self._back_to(len(self._names) - 1)

    def _into(self, name: str) -> None:
        parent = self._descriptors[-1]
        with suppress(NotADirectoryError, FileNotFoundError):  # the second look says which, and of what
            self._enter(name, os.open(name, os.O_DIRECTORY | _STEP, dir_fd=parent))
            return
        try:
            descriptor = os.open(name, _STEP, dir_fd=parent)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            self._follow(name, os.readlink(name, dir_fd=parent))
            return
        if stat.S_ISLNK(os.fstat(descriptor).st_mode):
            try:
                text = os.readlink("", dir_fd=descriptor)
            finally:
                os.close(descriptor)
            self._follow(name, text)
            return
        self._descriptors.append(descriptor)
        self._names.append(name)
        self._guarded.append(self._guarded[-1])
        if self._left:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), self.here)

    def _enter(self, name: str, descriptor: int) -> None:
        self._descriptors.append(descriptor)
        self._names.append(name)
        found = os.fstat(descriptor)
        guarded = self._guard(self.here, (found.st_dev, found.st_ino))
        self._guarded.append(len(self._names) if guarded else self._guarded[-1])

    def _follow(self, name: str, text: str) -> None:
        self._links += 1
        if self._links > MAX_LINKS or len(self._left) > MAX_COMPONENTS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(self._asked))
        guarded = self._guarded[-1]
        link = f"{self.here.rstrip('/')}/{name}"
        parts = text.split("/")
        if text.startswith("/"):
            kept = self._names[:guarded]
            inside = [part for part in parts if part not in {"", "."}]
            if guarded and (inside[:guarded] != kept or ".." in inside[:guarded]):
                self._refuse(link, text)
            self._back_to(guarded)
            parts = inside[guarded:]
        if guarded:
            self._last_link = link
            self._floor = max(self._floor, guarded)
        self._left.extend(reversed(parts))

    def _back_to(self, count: int) -> None:
        while len(self._names) > count:
            os.close(self._descriptors.pop())
            self._names.pop()
            self._guarded.pop()

    def _refuse(self, link: str, target: str) -> NoReturn:
        """Refuse what leads out of the innermost guarded directory.

        Raises:
            LinkError: Always.
        """
        count = max(self._floor, self._guarded[-1])
        folder = "/" + "/".join(self._names[:count])
        way = (os.path.dirname(link), target, *reversed(self._left))  # noqa: PTH120 - text
        real = os.path.normpath(os.path.join(*way))  # noqa: PTH118 - likewise
        raise LinkError(
            f"{self._asked} leads through the link {link} to {real}, out of {folder}, where guests can write",
            hint=f"look at the link: a guest may have left it; if you mean {real}, name that itself",
        )
