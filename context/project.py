"""Which project the user stands in, found as git finds it, but without running anything of a repository.

A guest can write all that lies in its project, so what files there name outside of it is not simply believed:

* A linked worktree's ``.git`` file names its repository. It counts only if that repository names this
  worktree in turn. Otherwise a guest could have any repository of the host mounted by the next session.
* A submodule's ``.git`` file likewise, and the repository's ``core.worktree`` must name the submodule.
* ``core.worktree`` of an ordinary repository, ``.git`` as a symlink, and a ``.git`` file without such an
  answer are not followed: the project is then just its folder.
* A ``.git`` that is broken ends the search. Git looks further above then; so a guest could have a repository
  around its own mounted, by breaking its own.

What is found is not yet believed: `claude_vm.context.folders` holds it against what was found before.
"""

import hashlib
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from claude_vm.context.errors import BrokenRepositoryError, LinkError, ProjectError
from claude_vm.context.git_files import core_value, flaw, line_as_path, named_by
from claude_vm.context.opening import real_path

Resolve = Callable[[Path], Path]
"""Returns an existing path without links, as `real_path` with some guard does."""

NAME_LIMIT = 19
"""Longest sanitized basename in a template's name: 40 characters in all."""


class Project(msgspec.Struct, frozen=True, kw_only=True):
    """What a session is about. All paths are absolute, without symlinks, and existed when it was found.

    `root` is the work tree, else the bare repository, else the current directory; `cwd` lies in it.
    `main_repository` is the main work tree, or the bare repository itself; None without git. It is `root`
    unless that is a linked worktree. `git_common_dir` is where its data lies: in `main_repository`, except
    for a submodule.
    `template_root` is what the template is named after: all worktrees of a repository share it.
    """

    root: Path
    cwd: Path
    template_root: Path
    main_repository: Path | None = None
    git_common_dir: Path | None = None
    bare: bool = False


def find_project(cwd: Path, resolve: Resolve = real_path) -> Project:
    """Return the project of a directory. `resolve` is asked for each path that may have links.

    Raises:
        ProjectError: The directory does not exist, or can't be entered.
        BrokenRepositoryError: There is a ``.git`` that is no repository.
        LinkError: See `real_path`; of the directory, or of where its repository is said to be.
    """
    try:
        here = resolve(cwd)
        device = here.stat().st_dev
        inside = here.is_dir() and os.access(here, os.X_OK)
    except (OSError, ValueError):
        inside = False
        here, device = cwd, 0
    if not inside:
        raise ProjectError(f"the current directory no longer exists: {cwd}", hint="change to another one")
    for folder in (here, *here.parents):
        try:
            if folder.stat().st_dev != device:
                break  # as git, which stays on one file system
        except OSError:
            continue  # not ours to look into
        found = _repository_at(folder, here, resolve)
        if found is not None:
            return found
    return Project(root=here, cwd=here, template_root=here)


def project_folders(project: Project) -> tuple[Path, ...]:
    """Return the folders that a session mounts for its project, none of which lies in another one.

    They are its root; in a linked worktree also the main repository; for a submodule also the folder with its
    data. They come in an order that depends on nothing else.
    """
    kept: list[Path] = []
    folders = (project.main_repository, project.root, project.git_common_dir)
    for folder in sorted({f for f in folders if f is not None}, key=lambda f: (len(f.parts), f)):
        # What lies in another one of these is there already, at the same path and writable too.
        if not any(other in folder.parents for other in kept):
            kept.append(folder)
    return tuple(kept)


def check_project(project: Project, *, home: Path, any_directory: bool) -> None:
    """Refuse a project whose mount would give away the user's home.

    Raises:
        ProjectError: A directory to be mounted is ``/``, the home directory or a parent of it, and
            `any_directory` does not allow that.
    """
    if any_directory:
        return
    try:
        user_home = home.resolve()
    except (OSError, RuntimeError):
        user_home = home
    for folder in (project.root, project.main_repository, project.git_common_dir):
        if folder is None or (folder != user_home and folder not in user_home.parents):
            continue
        if folder == Path(folder.anchor):
            what = "is the root of the file system"
        elif folder == user_home:
            what = "is your home directory"
        else:
            what = "contains your home directory"
        role = "" if folder == project.root else f" (the repository of {project.root})"
        raise ProjectError(
            f"{folder}{role} {what}, and the guest could write all of it",
            hint="change to a project's directory, or pass --any-directory if you mean it",
        )


def check_apart(folders: Iterable[Path], own: Iterable[Path]) -> None:
    """Refuse writable mounts of claude-vm's own data: templates, keys, the journal, sockets.

    Raises:
        ProjectError: One of `folders` is one of the folders `own`, contains one or lies in one.
    """
    chains = [(data, _chain(data)) for data in own]
    for folder in folders:
        real = _chain(folder)
        for data, chain in chains:
            # bind mounts give one directory several names
            if real[0] in chain or chain[0] in real:
                raise ProjectError(
                    f"a guest that may write to {folder} could write claude-vm's own data in {data}",
                    hint="work in another directory, mount this one read-only, or set CLAUDE_VM_HOME to a"
                    " folder outside of it, with a short path",
                )


def _chain(path: Path) -> list[object]:
    """Return the identities of a path and of each folder above it; of what is not there, its name."""
    folder = os.path.realpath(path)  # texts: a path object for each folder takes longer than all the looks
    found: list[object] = []
    while True:
        try:
            status = os.stat(folder)  # noqa: PTH116
        except OSError:
            found.append(folder)
        else:
            found.append((status.st_dev, status.st_ino))
        above = os.path.dirname(folder)  # noqa: PTH120
        if above == folder:
            return found
        folder = above


def template_name(root: Path) -> str:
    """Return the name of the template of a project, given its `Project.template_root`.

    It matches ``^[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*$`` and has at most 40 characters, so that it is a legal
    name of a Lima instance and leaves room in the path of a unix socket.
    """
    plain = unicodedata.normalize("NFKD", root.name).encode("ascii", "ignore").decode("ascii")
    words = "-".join(re.findall(r"[A-Za-z0-9]+", plain))[:NAME_LIMIT].strip("-")
    digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:8]
    return f"claude-tpl_{words or 'project'}_{digest}"


def _repository_at(folder: Path, here: Path, resolve: Resolve) -> Project | None:
    """Return the project if a repository's work tree, or its data, begins at this folder."""
    dot_git = folder / ".git"
    try:
        mode = dot_git.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = 0
    except OSError as error:
        raise _broken(folder, f"it can't be looked at: {error.strerror}") from error
    if stat.S_ISLNK(mode):
        return _plain(folder, here)
    if stat.S_ISDIR(mode):
        if why := flaw(dot_git):
            raise _broken(folder, why)
        return _own_repository(folder, dot_git, here)
    if stat.S_ISREG(mode):
        data = _data_of(folder, resolve)
        return _linked_worktree(folder, data, here, resolve) or _elsewhere(folder, data, here, resolve)
    if mode:
        raise _broken(folder, "it is neither a folder nor a file")
    if flaw(folder):
        return None
    if folder.name == ".git" and not _is_bare(folder):
        return None  # somewhere in the data of a work tree: that one is found next
    return _repository(folder, here, main=folder, common=folder, bare=True)


def _own_repository(folder: Path, dot_git: Path, here: Path) -> Project:
    if _is_bare(dot_git):
        # No work tree here: the current directory is what the user means.
        inside = dot_git == here or dot_git in here.parents
        return (
            _repository(dot_git, here, main=dot_git, common=dot_git, bare=True)
            if inside
            else _plain(here, here)
        )
    return _repository(folder, here, main=folder, common=dot_git)


def _data_of(folder: Path, resolve: Resolve) -> Path:
    """Return the folder that a ``.git`` file names, without links: a repository's data, or a worktree's."""
    named = named_by(folder / ".git")
    if named is None:
        raise _broken(folder, "it is a file that names no folder")
    try:
        data = resolve(named)
    except OSError as error:
        raise _broken(folder, f"it names {named}: {error.strerror}") from error
    repository = data.parent.parent if data.parent.name == "worktrees" else data
    why = flaw(repository)
    if why and flaw(data):
        raise _broken(folder, f"it names {named}, and {repository} is not a repository: {why}")
    return data


def _broken(folder: Path, why: str) -> BrokenRepositoryError:
    return BrokenRepositoryError(
        f"{folder / '.git'} is broken: {why}",
        hint="repair it (git fsck, git worktree repair), or remove it if the folder is not meant to be"
        " a repository",
    )


def _linked_worktree(folder: Path, data: Path, here: Path, resolve: Resolve) -> Project | None:
    common = data.parent.parent
    if data.parent.name != "worktrees" or flaw(common):
        return None
    named = line_as_path(data / "gitdir")
    if named is None or named.name != ".git" or _resolved(named.parent, resolve) != folder:
        return None
    main = _main_work_tree(common, resolve)
    return _repository(folder, here, main=main, common=common, bare=main == common)


def _elsewhere(folder: Path, data: Path, here: Path, resolve: Resolve) -> Project:
    """Return the project of a folder whose data lies elsewhere: a submodule, or a separate git directory."""
    if flaw(data):
        return _plain(folder, here)
    if _is_bare(data):
        return _plain(here, here)
    agreed = folder in data.parents or _work_tree_of(data, resolve) == folder
    return _repository(folder, here, main=folder, common=data) if agreed else _plain(folder, here)


def _main_work_tree(common: Path, resolve: Resolve) -> Path:
    """Return the main work tree of a repository's data; the data itself where there is none."""
    if _is_bare(common):
        return common
    if common.name == ".git":
        return common.parent
    tree = _work_tree_of(common, resolve)
    named = None if tree is None else named_by(tree / ".git")
    return tree if tree is not None and named is not None and _resolved(named, resolve) == common else common


def _work_tree_of(data: Path, resolve: Resolve) -> Path | None:
    named = core_value(data, "worktree")
    return _resolved(data / named, resolve) if named else None


def _resolved(path: Path, resolve: Resolve) -> Path | None:
    """Return a path without links; None where it leads to nothing, or where a guest may have led it."""
    try:
        return resolve(path)
    except (OSError, ValueError, LinkError):
        return None


def _is_bare(data: Path) -> bool:
    return (core_value(data, "bare") or "false").lower() in {"true", "yes", "on", "1"}


def _plain(folder: Path, here: Path) -> Project:
    return Project(root=folder, cwd=here, template_root=folder)


def _repository(root: Path, here: Path, *, main: Path, common: Path, bare: bool = False) -> Project:
    return Project(
        root=root,
        cwd=here,
        template_root=main,
        main_repository=main,
        git_common_dir=common,
        bare=bare,
    )
