"""What the daemon must know of us: arguments, directory, environment, terminal."""

# ruff: noqa: PTH109, PTH118, PTH123 - pathlib takes too long to load

import os

from claude_vm.supervisor.cli.tty import STDERR, STDIN, STDOUT, is_terminal, window_size
from claude_vm.supervisor.wire.messages import MAX_TERMINFO

KNOWN_EVERYWHERE = frozenset(
    {
        *("xterm", "xterm-256color", "screen", "screen-256color", "tmux", "tmux-256color"),
        *("linux", "vt100", "vt220", "dumb", "ansi"),
    }
)
"""Terminals that every guest has an entry for."""

_SYSTEM_FOLDERS = ("/etc/terminfo", "/lib/terminfo", "/usr/share/terminfo")


def invocation(argv: list[str]) -> dict[str, object]:
    """Return the content of INVOKE. Its strings hold bytes that are no UTF-8 as surrogates.

    Whatever the locale: a byte of an argument is that byte in the guest.
    """
    stdin_tty, stdout_tty = is_terminal(STDIN), is_terminal(STDOUT)
    rows, columns, width, height = window_size()
    term = _text(os.environb.get(b"TERM", b""))
    message: dict[str, object] = {
        "argv": [_text(os.fsencode(word)) for word in argv],
        "cwd": _directory(),
        "env": {_text(name): _text(value) for name, value in os.environb.items()},
        "terminal": {
            "stdin_tty": stdin_tty,
            "stdout_tty": stdout_tty,
            "stderr_tty": is_terminal(STDERR),
            "term": term,
            "rows": rows,
            "columns": columns,
            "width": width,
            "height": height,
        },
    }
    if stdin_tty and stdout_tty and term not in KNOWN_EVERYWHERE:
        entry = terminfo(term)
        if entry is not None:
            from binascii import b2a_base64  # noqa: PLC0415 - rarely needed

            message["terminfo"] = b2a_base64(entry, newline=False).decode("ascii")
    return message


def terminfo(term: str) -> bytes | None:
    """Look up a terminal's compiled description; None when there is none of at most `MAX_TERMINFO` bytes.

    Source: terminfo(5), "Fetching Compiled Descriptions".
    """
    if not term or "/" in term or term.startswith("."):
        return None
    folders = [os.environ.get("TERMINFO"), os.path.expanduser("~/.terminfo")]  # noqa: PTH111
    folders += os.environ.get("TERMINFO_DIRS", "").split(":")
    first = term[0]
    for folder in (*folders, *_SYSTEM_FOLDERS):
        # Systems whose file names know no case (macOS) use the letter's number.
        for letter in (first, f"{ord(first):x}"):
            if not folder:
                continue
            try:
                with open(os.path.join(folder, letter, term), "rb") as file:
                    entry = file.read(MAX_TERMINFO + 1)
            except OSError:
                continue
            return entry if len(entry) <= MAX_TERMINFO else None
    return None


def _directory() -> str:
    try:
        return _text(os.getcwdb())
    except FileNotFoundError:
        # Removed beneath us: commands that need a directory will say so, others work.
        told = _text(os.environb.get(b"PWD", b"/"))
        return told if told.startswith("/") else "/"


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
