"""Which project the user stands in, found as git finds it, but without running anything of a repository.

A guest can write all that lies in its project, so what files there name outside of it is not simply believed:

* A linked worktree's ``.git`` file names its repository. It counts only if that repository names this
  worktree in turn. Otherwise a guest could have any repository of the host mounted by the next session.
* A submodule's ``.git`` file likewise, and the repository's ``core.worktree`` must name the submodule.
* ``core.worktree`` of an ordinary repository, ``.git`` as a symlink, and a ``.git`` file without such an
  answer are not followed: the project is then just its folder.
"""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from claude_vm.context.errors import ProjectError
from claude_vm.context.git_files import core_value, is_git_directory, line_as_path, pointed_to

MAX_WORKTREES = 1000
"""More linked worktrees than this are not looked at."""

NAME_LIMIT = 19
"""Longest sanitized basename in a template's name: 40 characters in all."""


class Worktree(msgspec.Struct, frozen=True):
    """A linked worktree, as its repository knows it: under `name`, at `path` (which need not exist)."""

    name: str
    path: Path


class Project(msgspec.Struct, frozen=True, kw_only=True):
    """What a session is about. All paths are absolute, without symlinks, and existed when it was found.

    `root` is the work tree, else the bare repository, else the current directory; `cwd` lies in it.
    `main_repository` is the main work tree, or the bare repository itself; None without git. It is `root`
    unless that is a linked worktree. `git_common_dir` is where its data lies: in `main_repository`, except
    for a submodule. `worktrees` are all linked worktrees of the repository, `root` too if it is one.
    `template_root` is what the template is named after: all worktrees of a repository share it.
    """

    root: Path
    cwd: Path
    template_root: Path
    main_repository: Path | None = None
    git_common_dir: Path | None = None
    bare: bool = False
    worktrees: tuple[Worktree, ...] = ()


def find_project(cwd: Path) -> Project:
    """Return the project of a directory.

    Raises:
        ProjectError: The directory does not exist, or can't be entered.
    """
    try:
        here = cwd.resolve(strict=True)
        device = here.stat().st_dev
        inside = here.is_dir() and os.access(here, os.X_OK)
    except (OSError, RuntimeError, ValueError):
        inside = False
        here, device = cwd, 0
    if not inside:
        raise ProjectError(f"the current directory is gone: {cwd}", hint="change to another one")
    for folder in (here, *here.parents):
        try:
            if folder.stat().st_dev != device:
                break  # as git, which stays on one file system
            found = _repository_at(folder, here)
        except OSError:
            continue  # not ours to look into
        if found is not None:
            return found
    return Project(root=here, cwd=here, template_root=here)


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


def check_apart(folders: Iterable[Path], data: Path) -> None:
    """Refuse writable mounts of claude-vm's own data, which are templates, keys and the journal.

    Raises:
        ProjectError: One of `folders` is the folder `data`, contains it or lies in it.
    """
    own = data.resolve()
    for folder in folders:
        real = folder.resolve()
        if real == own or real in own.parents or own in real.parents:
            raise ProjectError(
                f"a guest that may write to {folder} could write claude-vm's own data in {data}",
                hint="work in another directory, mount this one read-only, or set CLAUDE_VM_HOME to a folder"
                " outside of it",
            )


def template_name(root: Path) -> str:
    """Return the name of the template of a project, given its `Project.template_root`.

    It matches ``^[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*$`` and has at most 40 characters, so that it is a legal
    name of a Lima instance and leaves room in the path of a unix socket.
    """
    plain = unicodedata.normalize("NFKD", root.name).encode("ascii", "ignore").decode("ascii")
    words = "-".join(re.findall(r"[A-Za-z0-9]+", plain))[:NAME_LIMIT].strip("-")
    digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:8]
    return f"claude-tpl_{words or 'project'}_{digest}"


def common_directory(repository: Path) -> Path | None:
    """Return where the data of a repository lies, given a `Project.main_repository`; None if it is gone."""
    try:
        return find_project(repository).git_common_dir
    except ProjectError:
        return None


def _repository_at(folder: Path, here: Path) -> Project | None:
    """Return the project if a repository's work tree, or its data, begins at this folder."""
    dot_git = folder / ".git"
    if dot_git.is_dir():
        if is_git_directory(dot_git):
            return _own_repository(folder, dot_git, here)
    elif dot_git.is_file():
        data = pointed_to(dot_git)
        if data is None or not data.is_dir():
            return _plain(folder, here)
        return _linked_worktree(folder, data, here) or _elsewhere(folder, data, here)
    if not is_git_directory(folder):
        return None
    if folder.name == ".git" and not _is_bare(folder):
        return None  # somewhere in the data of a work tree: that one is found next
    return _repository(folder, here, main=folder, common=folder, bare=True)


def _own_repository(folder: Path, dot_git: Path, here: Path) -> Project:
    if dot_git.is_symlink():
        return _plain(folder, here)
    if _is_bare(dot_git):
        # No work tree here: the current directory is what the user means.
        inside = dot_git == here or dot_git in here.parents
        return (
            _repository(dot_git, here, main=dot_git, common=dot_git, bare=True)
            if inside
            else _plain(here, here)
        )
    return _repository(folder, here, main=folder, common=dot_git)


def _linked_worktree(folder: Path, data: Path, here: Path) -> Project | None:
    common = data.parent.parent
    if data.parent.name != "worktrees" or not is_git_directory(common):
        return None
    if line_as_path(data / "gitdir") != folder / ".git":
        return None
    main = _main_work_tree(common)
    return _repository(folder, here, main=main, common=common, bare=main == common)


def _elsewhere(folder: Path, data: Path, here: Path) -> Project:
    """Return the project of a folder whose data lies elsewhere: a submodule, or a separate git directory."""
    if not is_git_directory(data):
        return _plain(folder, here)
    if _is_bare(data):
        return _plain(here, here)
    agreed = folder in data.parents or _work_tree_of(data) == folder
    return _repository(folder, here, main=folder, common=data) if agreed else _plain(folder, here)


def _main_work_tree(common: Path) -> Path:
    """Return the main work tree of a repository's data; the data itself where there is none."""
    if _is_bare(common):
        return common
    if common.name == ".git":
        return common.parent
    tree = _work_tree_of(common)
    return tree if tree is not None and pointed_to(tree / ".git") == common else common


def _work_tree_of(data: Path) -> Path | None:
    named = core_value(data, "worktree")
    if not named:
        return None
    try:
        return (data / named).resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
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
        worktrees=tuple(_worktrees(common)),
    )


def _worktrees(common: Path) -> Iterator[Worktree]:
    try:
        with os.scandir(common / "worktrees") as entries:
            names = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))[:MAX_WORKTREES]
    except OSError:
        return
    for name in names:
        named = line_as_path(common / "worktrees" / name / "gitdir")
        if named is not None and named.name == ".git":
            yield Worktree(name, named.parent)
