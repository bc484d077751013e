"""What folders were found to be when they were first used, and why a later finding may not be more.

Discovery (`claude_vm.context.project`) reads files that guests can write. So what a session would mount is
held against what is remembered, outside of every mount, from before a guest could change anything:

* A folder is remembered when it becomes a project, and when it becomes a writable mount, as what it was found
  to be then. For what lies in it, that is the bound, until something in there is remembered itself.
* A finding may be less than its bound. Then it is what is remembered from now on. More is a `Growth`, and
  only the user can allow it.
* A repository's data has a bound, too: where guests can write it, it can't say that more belongs to it.

So a guest that changes files of git can make a project smaller. It can't make it grow, neither by itself nor
by making it smaller first.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from claude_vm.context.errors import ContextError
from claude_vm.context.opening import FileIdentity
from claude_vm.context.project import Project, project_folders


class Folder(msgspec.Struct, frozen=True, kw_only=True):
    """A folder that is remembered. `reach` is what a session in it mounts for the project, writable.

    `writable` tells that a guest had it as a writable mount; `identity` is that of the directory that it had.
    """

    path: Path
    reach: tuple[Path, ...]
    template_root: Path
    writable: bool = False
    identity: FileIdentity = (0, 0)


class Known:
    """The folders that are remembered, at one moment."""

    def __init__(self, folders: Iterable[Folder] = ()) -> None:
        self._folders = {str(folder.path): folder for folder in folders}
        self._writable = {path for path, folder in self._folders.items() if folder.writable}
        self._identities = {self._folders[path].identity: self._folders[path] for path in self._writable}

    def nearest(self, path: Path) -> Folder | None:
        """Return what is remembered of a path, or of the nearest folder above it."""
        for folder in (path, *path.parents):
            if (found := self._folders.get(str(folder))) is not None:
                return found
        return None

    def bound(self, path: Path) -> Folder | None:
        """Return the same of an existing path. A writable folder that was moved is still known, at its place.

        So no guest gains by a folder that is moved into another repository.
        """
        for folder in (path, *path.parents):
            if (found := self._folders.get(str(folder))) is not None:
                return found
            if (moved := self._identities.get(_identity(folder))) is not None:
                return msgspec.structs.replace(moved, path=folder)
        return None

    def covers(self, reach: Iterable[Path], folders: Iterable[Path]) -> bool:
        """Tell whether each of some existing folders is, or lies in, one of `reach`, which may have moved."""
        allowed = tuple(reach)
        return all(
            any(self.is_now(place, was) for place in (folder, *folder.parents) for was in allowed)
            for folder in folders
        )

    def get(self, path: Path) -> Folder | None:
        """Return what is remembered of exactly this path."""
        return self._folders.get(str(path))

    def is_now(self, path: Path, was: Path) -> bool:
        """Tell whether an existing path is the folder `was`, which may have moved."""
        before = self.get(was)
        return path == was or (before is not None and before.writable and before.identity == _identity(path))

    @property
    def writable(self) -> tuple[Path, ...]:
        """The folders that are, or ever were, writable mounts."""
        return tuple(sorted(self._folders[path].path for path in self._writable))

    def guard(self, path: str, identity: FileIdentity) -> bool:
        """Be a `Guard` of the writable folders. One that was moved is still known."""
        return path in self._writable or identity in self._identities


class Growth(msgspec.Struct, frozen=True):
    """A finding is more than what is remembered of `folders`."""

    project: Project
    folders: tuple[Folder, ...]

    @property
    def text(self) -> str:
        """What it was and what it would be now, for people."""
        before = _described(self.folders[0].reach, self.folders[0].template_root)
        now = _described(project_folders(self.project), self.project.template_root)
        return (
            f"{self.folders[0].path} belonged to the project {before}, and would now belong to {now}:"
            " a guest may have caused that"
        )

    def allowed(self) -> tuple[Folder, ...]:
        """Return what is to be remembered when the user allows it."""
        reach, template_root = project_folders(self.project), self.project.template_root
        return tuple(
            msgspec.structs.replace(folder, reach=reach, template_root=template_root)
            for folder in self.folders
        )


def _described(folders: Sequence[Path], template_root: Path) -> str:
    named = ", ".join(str(folder) for folder in folders)
    return named if tuple(folders) == (template_root,) else f"{named} (template of {template_root})"


def growth(project: Project, known: Known) -> Growth | None:
    """Return how a project is more than what is remembered; None when it is not."""
    against: list[Folder] = []
    bound = known.bound(project.cwd)
    if bound is not None and not (
        known.covers(bound.reach, project_folders(project)) and _has_template(project, bound, known)
    ):
        against.append(bound)
    data = _claimed(project)
    bound = None if data is None else known.bound(data)
    if bound is not None and data is not None and project.main_repository is not None:
        main = known.get(project.main_repository)
        agreed = main is not None and known.covers(main.reach, [data])
        if not agreed and not known.covers(bound.reach, [project.main_repository]) and bound not in against:
            against.append(bound)
    return Growth(project, tuple(against)) if against else None


def remembered(
    project: Project,
    mounts: Iterable[tuple[Path, FileIdentity]],
    known: Known,
    find: Callable[[Path], Project],
) -> Iterator[Folder]:
    """Yield what is to be remembered before a session's VM gets its mounts, and is not yet.

    `mounts` are the writable ones, with their identities. `find` finds a folder's project.
    """
    root = known.get(project.root)
    own = Folder(path=project.root, reach=project_folders(project), template_root=project.template_root)
    if root is None:
        root = own
        yield own
    elif (root.reach, root.template_root) != (own.reach, own.template_root):
        root = msgspec.structs.replace(root, reach=own.reach, template_root=own.template_root)
        yield root
    for path, identity in mounts:
        before = root if path == project.root else known.get(path)
        if before is not None and before.writable and before.identity == identity:
            continue
        if before is None:
            before = _as_found(path, known, find)
        yield msgspec.structs.replace(before, writable=True, identity=identity)


def _as_found(path: Path, known: Known, find: Callable[[Path], Project]) -> Folder:
    """Return what a folder that becomes a mount is: alone, where more can't be believed."""
    try:
        found = find(path)
    except ContextError:
        found = None
    if found is None or growth(found, known) is not None:
        return Folder(path=path, reach=(path,), template_root=path)
    return Folder(path=path, reach=project_folders(found), template_root=found.template_root)


def _has_template(project: Project, bound: Folder, known: Known) -> bool:
    """Tell whether a template is the project's own: what it was, or one that no other project has had."""
    root = project.template_root
    is_new = bound.path != project.root and known.get(root) is None
    return is_new or root == project.root or known.is_now(root, bound.template_root)


def _claimed(project: Project) -> Path | None:
    """Return the data whose word it is that a main work tree belongs to it; None when it is the tree's word.

    That is so where the current directory's own ``.git`` file names the data.
    """
    data = project.git_common_dir
    own_file = project.main_repository == project.root and data != project.root / ".git"
    return None if own_file else data


def _identity(path: Path) -> FileIdentity:
    try:
        status = os.stat(path)  # noqa: PTH116 - for each command, so quick
    except OSError:
        return -1, -1  # nobody's
    return status.st_dev, status.st_ino
