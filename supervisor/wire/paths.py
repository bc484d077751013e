"""Where the daemon's socket is: the same rules for the client and the daemon. Standard library only.

A unix socket's path may have 104 bytes (macOS) or 108 (Linux) with its ending NUL. A data folder with a long
path gets a runtime directory with a short name instead, that anyone could have made before us: so the
directory must be ours, no symlink, and closed for others, or nothing is served or trusted there.
"""

# ruff: noqa: PTH100, PTH101, PTH102, PTH103, PTH111, PTH116, PTH118, PTH120 - pathlib takes too long to load

import contextlib
import os
import stat

from claude_vm.supervisor.wire.errors import UnsafePathError

LONGEST_SOCKET_PATH = 90
"""Bytes; some are left for sockets with longer names beside the daemon's."""

SOCKET_NAME = "daemon.sock"
LOG_NAME = "daemon.log"


def home(environ: "os._Environ[str] | dict[str, str]" = os.environ) -> str:
    """Return the data folder: ``CLAUDE_VM_HOME``, or ``~/.claude-vm``. Absolute; need not exist."""
    chosen = environ.get("CLAUDE_VM_HOME")
    if chosen:
        return os.path.abspath(os.path.expanduser(chosen))
    return os.path.join(os.path.expanduser("~"), ".claude-vm")


def runtime_directory(home: str) -> str:
    """Return the directory for the sockets of a data folder. It need not exist."""
    usual = os.path.join(home, "run")
    if len(os.fsencode(os.path.join(usual, SOCKET_NAME))) <= LONGEST_SOCKET_PATH:
        return usual
    from hashlib import sha256  # noqa: PLC0415 - rarely needed, and it loads OpenSSL

    digest = sha256(os.fsencode(os.path.realpath(home))).hexdigest()[:8]
    return f"/tmp/claude-vm-{os.getuid()}-{digest}"  # noqa: S108 - verified before use


_ELSEWHERE = "set CLAUDE_VM_HOME to a folder of your own with a short path"


def socket_path(home: str) -> str:
    """Return the path of the daemon's socket, short enough for every system."""
    return os.path.join(runtime_directory(home), SOCKET_NAME)


def log_path(home: str) -> str:
    """Return the path of the daemon's log."""
    return os.path.join(home, "logs", LOG_NAME)


def make_private(directory: str) -> None:
    """Make a directory that is ours alone (0700), or check that it is.

    An own directory that lets others in is closed. Its parent is made too (0700), and must be safe: who may
    write there could put another directory in place of ours.

    Raises:
        UnsafePathError: It is a symlink, no directory, or belongs to another user.
        OSError: It can't be made.
    """
    os.makedirs(os.path.dirname(directory), mode=0o700, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory, 0o700)
    _check_parent(os.path.dirname(directory))
    check_private(directory, repair=True)


def check_private(directory: str, *, repair: bool = False) -> None:
    """Check that a directory is ours alone; with `repair`, close an own one that lets others in.

    Raises:
        UnsafePathError: It is not.
        FileNotFoundError: There is none.
    """
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "no directory"
        move = "move it away, or " if _is_movable(directory, found) else ""
        raise UnsafePathError(
            f"{directory} is {kind}, and claude-vm keeps its socket there; {move}{_ELSEWHERE}"
        )
    if found.st_uid != os.getuid():
        raise UnsafePathError(
            f"{directory} belongs to user {found.st_uid}, not to you ({os.getuid()}); {_ELSEWHERE}"
        )
    if found.st_mode & 0o077:
        if not repair:
            raise UnsafePathError(f"{directory} lets others in; close it with: chmod 700 {directory}")
        os.chmod(directory, 0o700)


def _check_parent(directory: str) -> None:
    found = os.stat(directory)
    if found.st_uid not in {os.getuid(), 0}:
        raise UnsafePathError(
            f"{directory} belongs to user {found.st_uid}, not to you ({os.getuid()}); {_ELSEWHERE}"
        )
    if found.st_mode & 0o002 and not found.st_mode & stat.S_ISVTX:
        # Only its owner may close it, and the system's folders are open for somebody's reasons.
        close = f"close it with: chmod o-w {directory}" if found.st_uid == os.getuid() != 0 else _ELSEWHERE
        raise UnsafePathError(f"everybody may write to {directory}; {close}")


def _is_movable(path: str, found: os.stat_result) -> bool:
    """Tell whether we may take a name out of its folder: in one with the sticky bit only what is ours."""
    parent = os.path.dirname(path)
    folder = os.stat(parent)
    ours = os.getuid() in {0, found.st_uid, folder.st_uid}
    return os.access(parent, os.W_OK) and (ours or not folder.st_mode & stat.S_ISVTX)
