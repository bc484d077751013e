"""What a session could leave behind on this host: processes, sockets, folders, files.

`snapshot` is taken before, `leaks` after. Nothing is excused by name that a session makes.
"""

import contextlib
import os
import re
import tempfile
from hashlib import sha256
from pathlib import Path

import psutil

from claude_vm.drivers.api import Owner

INSTANCE = re.compile(r"\bi-[0-9a-f]{10}\b")
OF_A_HOME = re.compile(rf"claude-vm-{os.getuid()}-[0-9a-f]{{8}}")


class LeakCheck:
    """Looks at one claude-vm home, its processes and the folders for temporary files."""

    def __init__(self, home: Path, *, daemon_may_run: bool = True) -> None:
        self.home = home
        # other homes of this user may have sessions of their own
        self.mark = Owner(home, "any", home).mark.removesuffix("any")
        self._daemon_may_run = daemon_may_run
        self._temporary = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")]
        self._before = {path: self._names(path) for path in self._temporary}
        self._home_before = self._home_files()

    def leaks(self) -> list[str]:
        """Return a line for each thing that is there and should not be."""
        return [*self._processes(), *self._home_leaks(), *self._temporary_leaks()]

    def _processes(self) -> list[str]:
        found = []
        for process in psutil.process_iter(["pid", "cmdline", "uids"]):
            words = process.info["cmdline"] or []
            text = " ".join(words)
            ours = str(self.home) in text or self.mark in text
            if not ours or process.info["uids"] is None or process.info["uids"].real != os.getuid():
                continue
            if process.pid == os.getpid() or "pytest" in text:
                continue
            if self._daemon_may_run and "claude_vm.supervisor.daemon" in text:
                continue
            found.append(f"process {process.pid}{self._instance(process, text)}: {text[:200]}")
        return found

    @staticmethod
    def _instance(process, text) -> str:
        """Say of which instance a process is, by its own words or those of who has started it."""
        with contextlib.suppress(psutil.Error):
            for words in (text, *(" ".join(parent.cmdline()) for parent in process.parents())):
                if (named := INSTANCE.search(words)) is not None:
                    return f" of {named[0]}"
        return ""

    def _home_files(self) -> set[Path]:
        return set(self.home.rglob("*")) if self.home.exists() else set()

    def _home_leaks(self) -> list[str]:
        new = self._home_files() - self._home_before
        return [f"file {path}" for path in sorted(new) if not self._is_the_daemons(path)]

    def _is_the_daemons(self, path: Path) -> bool:
        """What a living daemon has; a supervisor inside a client must take its own things with it.

        A snapshot for another size of VM belongs to its template: it is made once and kept.
        """
        home = self.home
        folders = (home / "run", home / "supervisors", home / "instances", home / "instances" / "daemon")
        trees = (home / "logs", home / "supervisors" / "daemon", home / "reports")
        # what is remembered of folders is kept for ever
        kept = (home / "run" / "daemon.sock", home / "places.db")
        if path.is_relative_to(home / "templates") and "snapshots" in path.parts:
            return True
        return path in (*folders, *kept) or any(path.is_relative_to(tree) for tree in trees)

    @staticmethod
    def _names(path: Path) -> set[str]:
        """Names of what is ours in a folder that everybody uses."""
        names = set()
        for entry in path.iterdir() if path.is_dir() else ():
            with contextlib.suppress(OSError):
                if entry.lstat().st_uid == os.getuid():
                    names.add(entry.name)
        return names

    def _temporary_leaks(self) -> list[str]:
        found = []
        for folder, before in self._before.items():
            new = sorted(self._names(folder) - before)
            ours = [name for name in new if name.startswith(("claude-vm", "cvm", "tmp"))]
            found += [f"temporary {folder / name}" for name in ours if not self._is_of_another_home(name)]
        return found

    def _is_of_another_home(self, name: str) -> bool:
        """Tell whether a folder is that of another home with a path too long for sockets."""
        digest = sha256(os.fsencode(os.path.realpath(self.home))).hexdigest()[:8]
        return OF_A_HOME.fullmatch(name) is not None and not name.endswith(digest)
