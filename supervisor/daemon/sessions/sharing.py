"""Other sessions that can write where a new one can: locks don't hold between them (`drivers.api.Mount`).

What a session of another supervisor of this home can write is read from that one's journal.
"""

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath

import msgspec

from claude_vm.context.project import Project
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.daemon.sessions.session import Session
from claude_vm.supervisor.daemon.state import identity
from claude_vm.supervisor.daemon.state.database import connect_again
from claude_vm.supervisor.daemon.state.records import from_text


class Writer(msgspec.Struct, frozen=True):
    """A session, and the host directories in which its user may be writing."""

    session_id: str
    folders: tuple[str, ...]


class Shared(msgspec.Struct, frozen=True):
    """A directory in which another session can write, too."""

    session_id: str
    folder: str


def writes(key: PoolKey, project: Project) -> tuple[str, ...]:
    """Return where a session works: its project, and its own writable mounts.

    A repository that is mounted because a worktree or submodule has its data there is left out. Git makes its
    files there by renames and exclusive creation, which hold everywhere; and worktrees are how sessions keep
    out of each other's way.
    """
    for_git = {str(folder) for folder in (project.main_repository, project.git_common_dir) if folder}
    others = (
        mount.host
        for mount in key.mounts
        if mount.writable and not (mount.host == mount.guest and mount.host in for_git)
    )
    return tuple(dict.fromkeys((str(project.root), *others)))


def writers(sessions: Iterable[Session]) -> Iterator[Writer]:
    """Yield this supervisor's sessions whose VMs are not on their way out."""
    for session in sessions:
        if not session.ended.is_set() and session.phase != "delete":
            yield Writer(session.session_id, session.plan.writes or _writable(session.plan.key))


def writers_elsewhere(home: Path, own_id: str, boot_id: str) -> Iterator[Writer]:
    """Yield the running sessions of the other supervisors of a home; what can't be read has none."""
    with contextlib.suppress(OSError):
        for folder in sorted(identity.supervisors_folder(home).iterdir()):
            if folder.name != own_id:
                with contextlib.suppress(sqlite3.Error):
                    yield from _journaled(folder / "journal.db", boot_id)


def shared(own: Sequence[str], others: Iterable[Writer]) -> Iterator[Shared]:
    """Yield the first directory that each other session shares: the same, or one within the other."""
    for other in others:
        pairs = ((PurePath(mine), PurePath(theirs)) for mine in own for theirs in other.folders)
        for mine, theirs in pairs:
            if mine.is_relative_to(theirs) or theirs.is_relative_to(mine):
                yield Shared(other.session_id, str(max(mine, theirs, key=lambda path: len(path.parts))))
                break


def warning(found: Sequence[Shared]) -> str:
    """Return one line about all of them."""
    more = f" (and {len(found) - 1} more sessions)" if len(found) > 1 else ""
    return (
        f"the session {found[0].session_id}{more} can write in {found[0].folder} too, and locks don't hold"
        " between sessions: two writers can damage databases such as SQLite's"
        " ([session] note_second_writer = false silences this)"
    )


def _writable(key: PoolKey) -> tuple[str, ...]:
    return tuple(mount.host for mount in key.mounts if mount.writable)


def _journaled(path: Path, boot_id: str) -> Iterator[Writer]:
    if not path.exists():
        return
    with contextlib.closing(connect_again(path, timeout_s=0.2)) as connection:
        rows = connection.execute(
            "SELECT s.session_id, i.key FROM sessions AS s JOIN instances AS i USING (instance_id)"
            " WHERE s.started AND i.boot_id=? AND i.state != 'delete'",
            (boot_id,),
        ).fetchall()
    for session_id, text in rows:
        if isinstance(text, str) and (key := from_text(text, PoolKey)) is not None:
            yield Writer(str(session_id), _writable(key))
