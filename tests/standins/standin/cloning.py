"""``clone``, ``rename``, ``protect`` and ``unprotect``."""

import shutil
from pathlib import Path

from . import names
from .errors import LimaError, NotFoundError
from .images import copy_file
from .instance import RUNNING, Instance, inspect
from .log import LOG, quoted

_SKIPPED = ("protected", "swtpm")
_TEMPORARY = (".pid", ".sock", ".tmp")


def clone(old: str, new: str, *, rename: bool) -> Instance:
    """Copy an instance's files, or move them. What the host agent wrote last is copied, too, stale as it is.

    Raises:
        LimaError: there is no such instance, it runs, or the new one exists.
    """
    verb = "rename" if rename else "clone"
    try:
        source = inspect(old)
    except NotFoundError:
        raise LimaError(f"instance {quoted(old)} not found") from None
    if old == new:
        raise LimaError(f"new instance name {quoted(new)} must be different from {quoted(old)}")
    if source.status == RUNNING:
        raise LimaError(f"cannot {verb} a running instance")
    folder = names.instance_dir(new)
    if folder.exists():
        raise LimaError(f"instance {quoted(new)} already exists")
    names.check_socket_length(new)
    folder.mkdir(mode=0o700)
    _copy_tree(source.folder, folder, rename=rename)
    if rename:
        shutil.rmtree(source.folder)
    return inspect(new)


def protect(wanted: list[str]) -> None:
    """Keep instances from being deleted.

    Raises:
        LimaError: one of them does not exist.
    """
    _for_each(wanted, protected=True)


def unprotect(wanted: list[str]) -> None:
    """Let instances be deleted.

    Raises:
        LimaError: one of them does not exist.
    """
    _for_each(wanted, protected=False)


def _for_each(wanted: list[str], *, protected: bool) -> None:
    problems = []
    for name in wanted:
        try:
            found = inspect(name)
        except LimaError as error:
            problems.append(f"failed to inspect instance {quoted(name)}: {error}")
            continue
        mark = found.folder / "protected"
        if found.protected is protected:
            state = "is already protected" if protected else "isn't protected"
            LOG.warning(f"Instance {quoted(name)} {state}. Skipping.")
        elif protected:
            mark.touch(mode=0o400)
            LOG.info(f"Protected {quoted(name)}")
        else:
            mark.unlink()
            LOG.info(f"Unprotected {quoted(name)}")
    if problems:
        raise LimaError("\n".join(problems))


def _copy_tree(source: Path, target: Path, *, rename: bool) -> None:
    for path in sorted(source.iterdir()):
        if path.name in _SKIPPED or path.name.endswith(_TEMPORARY):
            continue
        copy = target / path.name
        if path.is_dir() and not path.is_symlink():
            copy.mkdir()
            _copy_tree(path, copy, rename=rename)
        elif rename:
            path.rename(copy)
        else:
            copy_file(path, copy)
