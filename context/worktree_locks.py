"""Keeps ``git worktree prune`` in a guest from deleting what git knows of worktrees that the guest can't see.

A session has its repository's data, but not the repository's other linked worktrees. For git in the guest
those are gone, and it deletes their metadata, at the latest when it tidies up by itself. Git leaves locked
worktrees alone: those with a file ``worktrees/<name>/locked``, whose text is the reason. So while sessions
run, the worktrees that aren't mounted are locked, with a text of ours that names the supervisors whose
sessions need it. A worktree that somebody else has locked stays as it is.

The guest can write all these files. Folders are opened step by step without following symlinks, files are
regular ones or left alone, and sizes are bounded. What they name is compared as text, and not looked for:
that a lock appears must not tell a guest what there is on the host.

Source: git-worktree's documentation.
"""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from claude_vm.context.regular_file import LOOK, read_open
from claude_vm.drivers.locks import try_lock

MARK = "claude-vm: sessions are running which don't have this worktree"
OWNER = "claude-vm supervisor: "
LIMIT = 16 * 1024
MAX_WORKTREES = 1000
"""More linked worktrees than this are not looked at."""

_SUPERVISOR_ID = re.compile(r"[a-z0-9-]{1,24}")
_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def lock_siblings(common: Path, mounted: Sequence[Path], supervisor_id: str) -> tuple[str, ...]:
    """Lock the linked worktrees of a repository that aren't mounted; return the names of ours.

    `common` is a `Project.git_common_dir`. Doing it twice is doing it once. What can't be locked (a read-only
    file system, another owner) is left alone: it is a precaution, not a condition.

    Raises:
        ValueError: `supervisor_id` is not ``[a-z0-9-]{1,24}``.
    """
    _check(supervisor_id)
    locked = []
    for name, folder in _metadata(common):
        path = _named(folder, common / "worktrees" / name)
        if path is None or any(path == place or place in path.parents for place in mounted):
            continue
        with suppress(OSError):
            if _add(folder, supervisor_id):
                locked.append(name)
    return tuple(locked)


def release_stale(common: Path, supervisor_id: str) -> tuple[str, ...]:
    """Take a supervisor's locks from a repository's worktrees; return the names that are unlocked by that.

    `common` is what `lock_siblings` was given: what is a repository's data by now, a guest may have decided.
    A lock stays while other supervisors need it. A repository that is gone has none. Doing it twice is fine.

    Raises:
        ValueError: `supervisor_id` is not ``[a-z0-9-]{1,24}``.
    """
    _check(supervisor_id)
    released = []
    for name, folder in _metadata(common):
        with suppress(OSError):
            if _change(folder, supervisor_id, add=False):
                released.append(name)
    return tuple(released)


def _check(supervisor_id: str) -> None:
    if not _SUPERVISOR_ID.fullmatch(supervisor_id):
        raise ValueError(f"no supervisor id: '{supervisor_id}'")


def _named(folder: int, metadata: Path) -> Path | None:
    """Return the path of the worktree that its open folder of metadata names, as text."""
    try:
        file = os.open("gitdir", LOOK | os.O_NOFOLLOW, dir_fd=folder)
    except OSError:
        return None
    try:
        text = (read_open(file, LIMIT) or b"").rstrip(b"\r\n")
    finally:
        os.close(file)
    path = Path(os.path.normpath(metadata / os.fsdecode(text)))
    return path.parent if path.name == ".git" else None


def _metadata(common: Path) -> Iterator[tuple[str, int]]:
    """Yield the name and an open folder for each linked worktree, under a lock among supervisors."""
    with suppress(OSError), _opened(common / "worktrees") as worktrees:
        with suppress(OSError):  # or a guest holds it: two supervisors may meet then, which is harmless
            try_lock(worktrees)
        for name in sorted(os.listdir(worktrees))[:MAX_WORKTREES]:  # noqa: PTH208 - a descriptor
            try:
                folder = os.open(name, os.O_RDONLY | _FOLDER, dir_fd=worktrees)
            except OSError:
                continue
            try:
                yield name, folder
            finally:
                os.close(folder)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open a folder of which no component may be a symlink."""
    step = getattr(os, "O_PATH", os.O_RDONLY) | _FOLDER
    folder = os.open(path.anchor, step)
    try:
        for part in path.parts[1:-1]:
            inner = os.open(part, step, dir_fd=folder)
            os.close(folder)
            folder = inner
        last = os.open(path.name, os.O_RDONLY | _FOLDER, dir_fd=folder)
    finally:
        os.close(folder)
    try:
        yield last
    finally:
        os.close(last)


def _add(folder: int, supervisor_id: str) -> bool:
    """Note a supervisor in the lock of a worktree; tell whether the lock is ours."""
    try:
        file = os.open("locked", os.O_RDWR | os.O_CREAT | os.O_EXCL | _FILE, 0o644, dir_fd=folder)
    except FileExistsError:
        return _change(folder, supervisor_id, add=True)
    with open(file, "wb") as new:  # noqa: PTH123 - a descriptor
        new.write(_text([supervisor_id]))
        if os.geteuid() == 0:
            owner = os.fstat(folder)
            os.fchown(file, owner.st_uid, owner.st_gid)
    return True


def _change(folder: int, supervisor_id: str, *, add: bool) -> bool:
    """Add a supervisor to a lock of ours, or take it away.

    Tell whether it is in the lock now (`add`), or whether the lock is gone now.
    """
    try:
        file = os.open("locked", os.O_RDWR | _FILE, dir_fd=folder)
    except FileNotFoundError:
        return False
    with open(file, "r+b", buffering=0) as lock:  # noqa: PTH123 - a descriptor
        owners = _owners(file)
        if owners is None or (not add and supervisor_id not in owners):
            return False
        left = {owner for owner in owners if owner != supervisor_id} | ({supervisor_id} if add else set())
        if left:
            if left != set(owners):
                text = _text(sorted(left))
                os.pwrite(lock.fileno(), text, 0)
                os.ftruncate(lock.fileno(), len(text))
            return add
    os.unlink("locked", dir_fd=folder)
    return True


def _text(owners: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in (MARK, *(OWNER + owner for owner in owners))).encode()


def _owners(file: int) -> list[str] | None:
    """Return the supervisors that an open lock names; None when the lock is not ours."""
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or status.st_size > LIMIT:
        return None
    first, *rest = os.pread(file, LIMIT, 0).decode("utf-8", "replace").splitlines() or [""]
    if first != MARK:
        return None
    return [line.removeprefix(OWNER) for line in rest if line.startswith(OWNER)]
