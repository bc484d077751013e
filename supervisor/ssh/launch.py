"""What a session runs, as a file for the guest.

The other half is the launcher in the guest, ``drivers/guest/session``: its opening comment says what it does
with this file.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum

from claude_vm.drivers.api import GuestFile
from claude_vm.supervisor.ssh.errors import LaunchError

SESSIONS = "/run/claude-vm/sessions"
"""Where the launcher looks for the files: a tmpfs, so that no secret reaches a disk."""

AGENTS = "/run/claude-vm/agent"
"""Where the sockets of forwarded agents are in a guest."""

_SESSION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LAUNCHERS = "__claude_vm_"
"""What the launcher's own variables begin with."""

# Bash's own: an assignment to them fails, or is dropped without a word.
_NOT_SETTABLE = frozenset(
    (
        "BASHOPTS",
        "BASHPID",
        "BASH_VERSINFO",
        "DIRSTACK",
        "EUID",
        "FUNCNAME",
        "GROUPS",
        "PPID",
        "SHELLOPTS",
        "UID",
    )
)


class Mode(StrEnum):
    """How the words are run: exactly as they are, as one line for a shell, or not at all (a login shell)."""

    EXEC = "exec"
    EVAL = "eval"
    SHELL = "shell"


def launch_file(
    session_id: str,
    *,
    mode: Mode,
    argv: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    cwd: str = "",
) -> GuestFile:
    """Return the file that must be in the guest before a shell becomes the session.

    Words, values and `cwd` are file-system strings: bytes that are no UTF-8 stand as lone surrogates. `cwd`
    is absolute, or empty for the user's home.

    Raises:
        LaunchError: A zero byte, an impossible variable, or a number of words that the mode can't run.
    """
    _check_id(session_id)
    if (mode is Mode.EXEC and not argv) or (mode is Mode.EVAL and len(argv) != 1):
        raise LaunchError(f"{len(argv)} words can't be run in the mode {mode.value}")
    if cwd and not cwd.startswith("/"):
        raise LaunchError(f"the working directory is not absolute: '{cwd}'")
    for name in env or {}:
        if not _NAME.fullmatch(name) or name in _NOT_SETTABLE or name.startswith(_LAUNCHERS):
            raise LaunchError(
                f"a shell can't set the environment variable '{name}'", hint="leave it out, or rename it"
            )
    settings = [f"{name}={value}" for name, value in (env or {}).items()]
    words = [mode.value, cwd, str(len(settings)), *settings, *argv]
    return GuestFile(f"{SESSIONS}/{session_id}/launch", _join(words))


def _check_id(session_id: str) -> None:
    if not _SESSION_ID.fullmatch(session_id):
        raise LaunchError(f"not a session id: '{session_id}'")


def _join(words: Iterable[str]) -> bytes:
    parts = [word.encode("utf-8", "surrogateescape") for word in words]
    if any(b"\0" in part for part in parts):
        raise LaunchError("a zero byte can't be passed to a program")
    return b"".join(part + b"\0" for part in parts)
