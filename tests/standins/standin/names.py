"""Where things are: Lima's home, its instances' folders and the files in them."""

import os
import re
from pathlib import Path

from .errors import LimaError
from .log import quoted

LONGEST_SOCKET = "ssh.sock.1234567890123456"
"""ssh adds 16 characters to a control socket's name while it makes it."""

UNIX_PATH_MAX = 108

_IDENTIFIER = re.compile(r"^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$")
_LONGEST_IDENTIFIER = 76


def home() -> Path:
    """Return Lima's home with symbolic links resolved, if it exists."""
    found = Path(os.environ.get("LIMA_HOME") or Path.home() / ".lima")
    return found.resolve() if found.exists() else found


def config_dir() -> Path:
    return home() / "_config"


def check_name(name: str) -> None:
    """Refuse what can't name an instance.

    Raises:
        LimaError: with limactl's words.
    """
    problem = problem_with(name)
    if problem is not None:
        raise LimaError(f"instance name {quoted(name)} is not a valid identifier: {problem}")
    if name.lower().endswith((".yml", ".yaml")):
        raise LimaError(f"instance name {quoted(name)} must not end with .yml or .yaml suffix")


def is_name(name: str) -> bool:
    try:
        check_name(name)
    except LimaError:
        return False
    return True


def instance_dir(name: str) -> Path:
    """Return the folder of an instance that may not exist.

    Raises:
        LimaError: it is no instance's name.
    """
    check_name(name)
    return home() / name


def instance_names() -> list[str]:
    """Return the names of all instance folders, sorted."""
    if not home().exists():
        return []
    folders = (entry for entry in home().iterdir() if entry.is_dir() and not entry.is_symlink())
    return sorted(folder.name for folder in folders if not folder.name.startswith((".", "_")))


def check_socket_length(name: str) -> None:
    """Refuse a folder in which sockets would have names that are too long.

    Raises:
        LimaError: with limactl's words.
    """
    longest = str(instance_dir(name) / LONGEST_SOCKET)
    if len(longest) >= UNIX_PATH_MAX:
        raise LimaError(
            f"instance name {quoted(name)} too long: {quoted(longest)} must be less than "
            f"UNIX_PATH_MAX={UNIX_PATH_MAX} characters, but is {len(longest)}"
        )


def hostname(name: str) -> str:
    return "lima-" + name.replace(".", "-").replace("_", "-")


def problem_with(name: str) -> str | None:
    """Tell what is wrong with an identifier, if anything is."""
    if not name:
        return "identifier must not be empty"
    if len(name) > _LONGEST_IDENTIFIER:
        return f"identifier {quoted(name)} greater than maximum length ({_LONGEST_IDENTIFIER} characters)"
    if not _IDENTIFIER.match(name):
        pattern = r"^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$"
        return f"identifier {quoted(name)} must match {pattern}"
    return None
