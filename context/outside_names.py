"""What a session changed under other names too: files in its mounts that also have a name outside of them.

A hard link in a mount leads out of it: who writes the file there has written it everywhere. This is looked
for after the session, as a program of its own: ``outside_names.py`` by a bare interpreter, standard library
only, its order on stdin and its findings on stdout, both JSON. It takes little processor time from others.

Guests made the tree, and other guests may still change it. So it is walked without recursion, each folder is
opened from the one above it without following links, and there are bounds: for open folders, for entries, for
seconds, for memory. What could not be seen is counted and named.

A name in the mounts is found by walking all of them; a file has a name elsewhere when it has more names than
that. Only its status-change time counts as "changed", which a guest can't set.
"""

import contextlib
import json
import os
import resource
import stat
import sys
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypedDict

DEPTH = 200
"""Folders that are open at a time, one in the other."""

ENTRIES = 5_000_000
"""Names that are looked at."""

SECONDS = 300.0

MEMORY = 1 << 30
"""Bytes of address space. A guest chooses how many names there are, and how long."""

NAMED = 10
"""Files, and folders that could not be seen, whose paths are told; the others are counted."""

LONGEST = 200
"""Characters of a path that are told: its beginning and its end."""

TOO_MANY = "it has too many files"

CLOCK_S = 0.1
"""How much a file system's clock may be behind ours, in seconds."""


class Root(TypedDict):
    """A mounted directory of this host. `inode` 0: whichever directory has this path."""

    path: str
    device: int
    inode: int


class Changed(TypedDict):
    """A file with another name: one path of it, and its last change as a Unix time in seconds."""

    path: str
    at: float


class Findings(TypedDict):
    """What was found. `files` and `unseen` hold `NAMED` at most; the counts are of all.

    `unseen` are folders that a guest could have written in and that were not looked into, and why.
    """

    files: list[Changed]
    files_count: int
    unseen: list[tuple[str, str]]
    unseen_count: int


class _Folder(NamedTuple):
    """An open folder on the way down, and which of its folders are still to be walked."""

    descriptor: int
    path: str
    left: list[str]


class _File:
    """A changed file with several names, of which `found` are in the mounts; one as it is told."""

    __slots__ = ("at", "found", "links", "path")

    def __init__(self, path: str, at: float) -> None:
        self.path = path
        self.at = at
        self.links = 0
        self.found = 0


class Walk:
    """One walk over the mounts of one session. `deadline` is on `time.monotonic`'s clock."""

    def __init__(self, since: float, *, deadline: float, depth: int = DEPTH, entries: int = ENTRIES) -> None:
        self._since = since - CLOCK_S
        self._deadline = deadline
        self._depth = depth
        self._entries = entries
        self._files: dict[tuple[int, int], _File] = {}
        self._folders: set[tuple[int, int]] = set()
        self._unseen: list[tuple[str, str]] = []
        self._unseen_count = 0

    def look(self, root: Root) -> None:
        """Walk one mounted directory; what was walked before (it lies in another one) is left out."""
        if self._entries < 0:
            self._miss(root["path"], TOO_MANY)
            return
        try:
            descriptor = os.open(root["path"], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            self._miss(root["path"], str(error.strerror))
            return
        found = os.fstat(descriptor)
        if root["inode"] and (found.st_dev, found.st_ino) != (root["device"], root["inode"]):
            os.close(descriptor)
            self._miss(root["path"], "it was replaced by another directory")
            return
        way: list[_Folder] = []
        try:
            self._entered(descriptor, root["path"], found, way)
            while way and self._has_time():
                if way[-1].left:
                    self._descend(way, way[-1].left.pop())
                else:
                    os.close(way.pop().descriptor)
        except MemoryError:
            self._entries = -1  # nothing more is looked at
            self._folders.clear()
        finally:
            for folder in way:
                os.close(folder.descriptor)
        if way or self._entries < 0:
            self._miss(root["path"], TOO_MANY)

    def findings(self) -> Findings:
        """Return what was found on all walks."""
        outside = [file for file in self._files.values() if file.found < file.links]
        return {
            "files": [
                {"path": f.path, "at": f.at} for f in sorted(outside, key=lambda file: file.path)[:NAMED]
            ],
            "files_count": len(outside),
            "unseen": self._unseen,
            "unseen_count": self._unseen_count,
        }

    def _descend(self, way: list[_Folder], name: str) -> None:
        above = way[-1]
        path = f"{above.path}/{name}"
        if len(way) >= self._depth:
            self._miss(path, f"it lies deeper than {self._depth} folders")
            return
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=above.descriptor)
        except PermissionError as error:
            if _enterable(name, above.descriptor):
                self._miss(path, str(error.strerror))
        except (FileNotFoundError, NotADirectoryError):
            return  # somebody changes the tree
        except OSError as error:
            self._miss(path, str(error.strerror))
        else:
            self._entered(descriptor, path, os.fstat(descriptor), way)

    def _entered(self, descriptor: int, path: str, found: os.stat_result, way: list[_Folder]) -> None:
        """Look at a folder's entries, and put it on the way."""
        folder = _Folder(descriptor, path, [])
        way.append(folder)
        identity = found.st_dev, found.st_ino
        if identity in self._folders:
            return
        self._folders.add(identity)
        try:
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    self._entries -= 1
                    if self._entries < 0:
                        break
                    if entry.is_dir(follow_symlinks=False):
                        folder.left.append(entry.name)
                    elif entry.is_file(follow_symlinks=False):
                        self._see(entry, path)
        except OSError as error:
            self._miss(path, str(error.strerror))

    def _see(self, entry: os.DirEntry[str], folder: str) -> None:
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError:
            return  # gone
        if status.st_nlink < 2 or not stat.S_ISREG(status.st_mode):
            return
        at = status.st_ctime
        if at.is_integer():  # a file system that counts seconds only, and has left the rest out
            at += 1
        if at < self._since:
            return
        identity = status.st_dev, status.st_ino
        file = self._files.get(identity)
        if file is None:  # a path may be as long as `DEPTH` names, and there may be millions
            file = self._files[identity] = _File(_told(f"{folder}/{entry.name}"), at)
        file.links = status.st_nlink
        file.found += 1

    def _has_time(self) -> bool:
        return self._entries >= 0 and time.monotonic() < self._deadline

    def _miss(self, path: str, reason: str) -> None:
        self._unseen_count += 1
        if len(self._unseen) < NAMED:
            self._unseen.append((_told(path), reason))


def look(roots: Iterable[Root], since: float, seconds: float = SECONDS) -> Findings:
    """Return which files changed since a Unix time in seconds and have names outside of `roots`."""
    walk = Walk(since, deadline=time.monotonic() + seconds)
    for root in sorted(roots, key=lambda root: root["path"]):
        walk.look(root)
    return walk.findings()


def _told(path: str) -> str:
    half = LONGEST // 2
    return path if len(path) <= LONGEST else f"{path[:half]}…{path[half + 1 - LONGEST :]}"


def _enterable(name: str, above: int) -> bool:
    """Tell whether a guest, who has our rights, could do anything in a folder that can't be listed."""
    try:
        owner = os.stat(name, dir_fd=above, follow_symlinks=False).st_uid
    except OSError:
        return False
    return owner == os.geteuid() or os.access(name, os.X_OK, dir_fd=above, effective_ids=True)


def _yield_to_everybody() -> None:
    """Take a hundredth of what others get. Not the idle policy: on a busy host that may mean never.

    On Linux a session of processes has a share of its own, with a niceness; that of a process counts within.
    """
    os.nice(19)
    with contextlib.suppress(OSError):
        share = os.open("/proc/self/autogroup", os.O_WRONLY)
        os.write(share, b"19")
        os.close(share)


def _take_no_more_than(size: int) -> None:
    """Let this process have no more than `size` bytes of address space, where a system can limit that."""
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(
            resource.RLIMIT_AS, (size if most == resource.RLIM_INFINITY else min(size, most), most)
        )


def main(argv: Sequence[str]) -> None:  # noqa: ARG001
    """Carry out the order on stdin."""
    _yield_to_everybody()
    _take_no_more_than(MEMORY)
    order = json.load(sys.stdin)
    json.dump(look(order["roots"], order["since"], order["seconds"]), sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
