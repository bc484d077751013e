"""Which read-only mounts of a guest it could write all the same, through another mount of its own.

A mount can be read-only, a directory can't: where a read-only mount lies in a writable one, root in the guest
takes it away and finds the directory beneath it, writable. Such a pair is no promise that anybody can keep,
and is refused. A writable mount in a read-only one is fine: it is what was asked for.

Directories are compared by where they are in their file systems, because bind mounts give one directory
several names, and bring directories from elsewhere into a tree. A file system that shows another one's files
(bindfs, a network share of this host's own) can't be told from one that has its own.

Source: proc_pid_mountinfo(5).
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from claude_vm.drivers.api import Mount

MOUNT_TABLE: Final = Path("/proc/self/mountinfo")

_OCTAL: Final = re.compile(rb"\\([0-7]{3})")


class HostMount(msgspec.Struct, frozen=True):
    """One of the host's mounts: the folder `root` of the file system `device` is at `point`."""

    device: str
    root: Path
    point: Path


def read_mount_table(file: Path = MOUNT_TABLE) -> tuple[HostMount, ...]:
    """Return the host's mounts in their order; nothing where the system has no such table."""
    try:
        lines = file.read_bytes().splitlines()
    except OSError:
        return ()
    return tuple(_host_mount(line) for line in lines if line.count(b" ") >= 4)


def _host_mount(line: bytes) -> HostMount:
    _, _, device, root, point, *_ = line.split(b" ")
    return HostMount(device.decode(errors="replace"), _plain(root), _plain(point))


def _plain(text: bytes) -> Path:
    return Path(os.fsdecode(_OCTAL.sub(lambda digits: bytes([int(digits[1], 8) & 0xFF]), text)))


def writable_ways(mounts: Sequence[Mount], table: Sequence[HostMount]) -> Iterator[tuple[Mount, Mount]]:
    """Yield each read-only mount with the first writable one through which its directory can be written.

    The hosts' paths have no links.
    """
    writable = [(mount, _reached(Path(mount.host), table)) for mount in mounts if mount.writable]
    for mount in mounts:
        if mount.writable:
            continue
        place = _place(Path(mount.host), table)
        above = _identities(Path(mount.host))
        for other, reached in writable:
            same = (other.device, other.inode) in above
            if same or any(_beneath(place, tree) for tree in reached):
                yield mount, other
                break


_Place = tuple[str, Path]
"""A file system, and a path in it."""


def _reached(path: Path, table: Iterable[HostMount]) -> list[_Place]:
    """Return the trees that a mounted directory shows: its own, and what is mounted in it on the host."""
    inner = [(m.device, m.root) for m in table if path in m.point.parents]
    return [_place(path, table), *inner]


def _place(path: Path, table: Iterable[HostMount]) -> _Place:
    found: HostMount | None = None
    for mount in table:
        if mount.point == path or mount.point in path.parents:
            # of two at one place the later one is on top
            found = mount if found is None or len(mount.point.parts) >= len(found.point.parts) else found
    if found is None:
        return "", path
    return found.device, found.root / path.relative_to(found.point)


def _beneath(place: _Place, tree: _Place) -> bool:
    device, path = place
    return device == tree[0] and (path == tree[1] or tree[1] in path.parents)


def _identities(path: Path) -> set[tuple[int, int]]:
    found = set()
    for folder in (path, *path.parents):
        try:
            status = folder.stat()
        except OSError:
            continue
        found.add((status.st_dev, status.st_ino))
    return found
