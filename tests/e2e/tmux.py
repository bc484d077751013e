"""A real terminal: tmux on a server of its own."""

import os
import shlex
import subprocess
import time


class Tmux:
    """One tmux server with one window; a context manager."""

    def __init__(self, socket, *, columns=100, rows=30):
        self._base = ["tmux", "-S", str(socket), "-f", "/dev/null"]
        self._size = (columns, rows)

    def __enter__(self):
        columns, rows = self._size
        # a plain shell with a known prompt, whatever the user's own looks like
        shell = (
            "env -i PATH=/usr/bin:/bin HOME=/ PS1='host> ' TERM=tmux-256color /bin/bash --norc --noprofile"
        )
        self._call("new-session", "-d", "-x", str(columns), "-y", str(rows), shell)
        self._call("set-option", "-g", "remain-on-exit", "on")
        self.wait_for("host>")
        return self

    def __exit__(self, *_):
        subprocess.run([*self._base, "kill-server"], check=False, capture_output=True)

    def _call(self, *words):
        return subprocess.run([*self._base, *words], check=True, capture_output=True, text=True).stdout

    def run(self, argv, *, cwd, env):
        """Type a command line that runs a program with exactly this environment."""
        words = ["env", "-i", *(f"{k}={v}" for k, v in env.items()), *map(str, argv)]
        self.type(f"cd {shlex.quote(str(cwd))} && {shlex.join(words)}")

    def type(self, text):
        """Type a line and press Enter."""
        self._call("send-keys", "-l", text)
        self._call("send-keys", "Enter")

    def press(self, *keys):
        """Press keys by tmux's names, such as C-c."""
        self._call("send-keys", *keys)

    def resize(self, columns, rows):
        """Change the window's size."""
        self._call("resize-window", "-x", str(columns), "-y", str(rows))

    def screen(self):
        """Return what is on the screen, with what has scrolled off."""
        return self._call("capture-pane", "-p", "-J", "-S", "-500")

    def format(self, text):
        """Return tmux's own idea of something, such as the alternate screen."""
        return self._call("display-message", "-p", text).strip()

    def modes(self):
        """Return what stty says of the window's terminal, from outside and without its size."""
        tty = self.format("#{pane_tty}")
        terminal = os.open(tty, os.O_RDWR | os.O_NOCTTY)
        try:
            done = subprocess.run(["stty", "-a"], stdin=terminal, capture_output=True, text=True, check=True)
        finally:
            os.close(terminal)
        return done.stdout.partition("line = ")[2]

    def wait_for(self, text, timeout=90.0, count=1):
        """Wait until a text is on the screen (`count` times); return the screen."""
        deadline = time.monotonic() + timeout
        while (screen := self.screen()).count(text) < count:
            if time.monotonic() > deadline:
                raise AssertionError(f"{text!r} did not appear; the screen:\n{screen}")
            time.sleep(0.1)
        return screen
