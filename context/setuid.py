"""Setuid programs that a guest leaves in a mount: found, made harmless, told.

A guest can set the setuid bit on files in a writable mount. On the host such a file would run as its owner
for whoever starts it (feature spec 04, threat 22). The guest is gone when this runs, so nothing races.
"""

import os
import stat
from contextlib import suppress
from pathlib import Path

BITS = stat.S_ISUID | stat.S_ISGID


def strip_setuid(root: Path, since: float) -> list[str]:
    """Clear setuid and setgid of regular files beneath `root` that changed since `since`; return their paths.

    `since` is a Unix time in seconds, compared with the time of the last status change, which a guest can't
    set. No symlink is followed. Files that can't be changed (another owner's) are reported too. A folder
    that is gone has none.

    Raises:
        OSError: `root` is there and can't be read.
    """
    found: list[str] = []
    with suppress(FileNotFoundError, NotADirectoryError):  # of `root`: those of what is beneath are ignored
        _strip(root, since, found)
    return found


def _strip(root: Path, since: float, found: list[str]) -> None:
    for folder, _, names, descriptor in os.fwalk(root, follow_symlinks=False, onerror=None):
        for name in names:
            try:
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            except OSError:
                continue
            if not stat.S_ISREG(status.st_mode) or not _runs_as_owner(status.st_mode):
                continue
            if status.st_ctime < since - 1:
                continue
            _clear(name, descriptor, status.st_mode)
            found.append(os.path.join(folder, name))  # noqa: PTH118 - os.fwalk gives text


def _runs_as_owner(mode: int) -> bool:
    # setgid without group execution is a mark for mandatory locks, not a privilege
    return bool(mode & stat.S_ISUID) or (bool(mode & stat.S_ISGID) and bool(mode & stat.S_IXGRP))


def _clear(name: str, folder: int, mode: int) -> None:
    """Clear the bits of exactly the file that was looked at.

    Another session's guest may still write here and put a symlink in the file's place, so the name is opened
    without following, and without needing read permission.
    """
    wanted = stat.S_IMODE(mode) & ~BITS
    try:
        if os.chmod in os.supports_follow_symlinks:
            os.chmod(name, wanted, dir_fd=folder, follow_symlinks=False)
            return
        descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=folder)
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.chmod(f"/proc/self/fd/{descriptor}", wanted)  # noqa: PTH101 - the open file itself
        finally:
            os.close(descriptor)
    except OSError:
        return
