"""What a session runs, as a file for the guest.

The other half is the launcher in the guest, ``drivers/guest/session``: its opening comment says what it does
with this file.
"""

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum

from claude_vm.drivers.api import GuestFile
from claude_vm.supervisor.ssh.errors import LaunchError

SESSIONS = "/run/claude-vm/sessions"
"""Where the launcher looks for the files: a tmpfs, so that no secret reaches a disk."""

AGENTS = "/run/claude-vm/agent"
"""Where the sockets of forwarded agents are in a guest."""

WORD_LIMIT = 128 * 1024
"""Bytes of one word, or one variable with its name and ``=``, with the zero byte behind it, that Linux gives
to a program. Source: MAX_ARG_STRLEN of execve(2)."""

TOTAL_LIMIT = 2 * 1024 * 1024 - WORD_LIMIT
"""Bytes of all words and variables together, each with a pointer to it. A guest's limit is a quarter of its
stack's, 2 MiB; what is left are its profile's variables, and the words of the programs that the command
starts in turn. Source: execve(2)."""

_POINTER = 8

_SESSION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LAUNCHERS = "__claude_vm_"
"""What the launcher's own variables begin with."""

# Bash's own: an assignment to them fails, or is dropped without a word.
_NOT_SETTABLE = frozenset(
    {
        *("BASHOPTS", "BASHPID", "BASH_VERSINFO", "DIRSTACK", "EUID", "FUNCNAME", "GROUPS", "PPID"),
        *("SHELLOPTS", "UID"),
    }
)


class LaunchMode(StrEnum):
    """How the words are run: exactly as they are, as one line for a shell, or not at all (a login shell)."""

    EXEC = "exec"
    EVAL = "eval"
    SHELL = "shell"


def launch_file(
    session_id: str,
    *,
    mode: LaunchMode,
    argv: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    cwd: str = "",
) -> GuestFile:
    """Return the file that must be in the guest before a shell becomes the session.

    Words, values and `cwd` are file-system strings: bytes that are no UTF-8 stand as lone surrogates. `cwd`
    is absolute, or empty for the user's home.

    Raises:
        LaunchError: A zero byte, an impossible variable, a number of words that the mode can't run, or more
            than a program can be given.
    """
    _check_id(session_id)
    if (mode is LaunchMode.EXEC and not argv) or (mode is LaunchMode.EVAL and len(argv) != 1):
        raise LaunchError(f"{len(argv)} words can't be run in the mode {mode.value}")
    if cwd and not cwd.startswith("/"):
        raise LaunchError(f"the working directory is not absolute: '{cwd}'")
    for name in env or {}:
        if not _NAME.fullmatch(name) or name in _NOT_SETTABLE or name.startswith(_LAUNCHERS):
            raise LaunchError(
                f"a shell can't set the environment variable '{name}'", hint="leave it out, or rename it"
            )
    settings = [_encoded(f"{name}={value}") for name, value in (env or {}).items()]
    words = [_encoded(word) for word in argv]
    _check_sizes(settings, words)
    head = [_encoded(word) for word in (mode.value, cwd, str(len(settings)))]
    return GuestFile(
        f"{SESSIONS}/{session_id}/launch", b"".join(each + b"\0" for each in head + settings + words)
    )


def _check_id(session_id: str) -> None:
    if not _SESSION_ID.fullmatch(session_id):
        raise LaunchError(f"not a session id: '{session_id}'")


def _check_sizes(settings: Sequence[bytes], words: Sequence[bytes]) -> None:
    """Refuse what a guest's kernel would refuse to every program of the session.

    Raises:
        LaunchError: One is too large, or all together are.
    """
    named = [(_variable(each), len(each) + 1) for each in settings]
    named += [(f"the word {number}", len(each) + 1) for number, each in enumerate(words, start=1)]
    name, largest = max(named, key=lambda each: each[1], default=("", 0))
    if largest > WORD_LIMIT:
        raise LaunchError(
            f"{name} has {largest - 1} bytes; Linux allows at most {WORD_LIMIT - 1} in one variable or word",
            hint="put it into a file of the project, or leave it out",
        )
    total = sum(size + _POINTER for _, size in named)
    if total > TOTAL_LIMIT:
        raise LaunchError(
            f"the variables and words of this session have {total} bytes together; Linux allows at most"
            f" {TOTAL_LIMIT}; the largest is {name} with {largest - 1}",
            hint="leave some out, or put them into a file of the project",
        )


def _variable(setting: bytes) -> str:
    return f"the environment variable {setting.partition(b'=')[0].decode()}"


def _encoded(word: str) -> bytes:
    data = word.encode("utf-8", "surrogateescape")
    if b"\0" in data:
        raise LaunchError("a zero byte can't be passed to a program")
    return data
