"""Our own lines on stderr: messages, and progress that rewrites itself on a terminal."""

import os

from claude_vm.supervisor.cli.tty import STDERR, is_terminal, window_size

_ERASE = "\r\x1b[K"


class Notes:
    """Turns the daemon's notes into bytes for stderr. Keeps whether a progress line stands there."""

    def __init__(self) -> None:
        self._rewrites = is_terminal(STDERR) and os.environ.get("TERM", "dumb") != "dumb"
        self._standing = False

    def render(self, text: str, level: str) -> bytes:
        """Return a note as bytes."""
        erase = self._erase()
        if level == "progress" and self._rewrites:
            columns = window_size()[1] or 80
            line = text.split("\n", 1)[0][: columns - 1]
            self._standing = True
            return _encode(erase + line)
        return _encode(f"{erase}{text}\n")

    def interrupting(self, text: str) -> bytes:
        """Return a note for the screen of a program that has the terminal, which is raw."""
        if not is_terminal(STDERR):
            return _encode(f"{text}\n")
        lines = text.replace("\n", "\r\n")
        return _encode(f"\r\n{lines}\r\n")

    def settle(self) -> bytes:
        """Return what removes a standing progress line, or ``b""``."""
        return _encode(self._erase())

    def _erase(self) -> str:
        standing, self._standing = self._standing, False
        return _ERASE if standing else ""


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
