"""Homes of the bench's own: one for each mode, with its own daemon and settings, sharing the user's template.

A mode is a setting of the daemon (how many warm VMs, whether memory is cloned), and all modes take turns, so
each has a daemon of its own. Only links to the template's current generation lie in such a home: nothing that
its daemon removes is the user's. The homes lie beneath the user's data folder, on the same file system.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from claude_vm.bench.children import finished
from claude_vm.bench.errors import BenchError, UnavailableError
from claude_vm.context.project import find_project, template_name
from claude_vm.drivers import locks
from claude_vm.drivers.api import TemplateRecord
from claude_vm.drivers.lima.home import is_ours, lima_home
from claude_vm.drivers.process import find_marked
from claude_vm.supervisor.wire import paths

WORD_S = 300.0
"""How long a command that is not measured may take, in seconds."""

RECORD = "template.json"
"""The file in a generation that says what it is."""

_KEPT = ("PATH", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "SHELL", "CLAUDE_VM_VALIDATE")


def program() -> Path:
    """Return the ``claude-vm`` that belongs to this interpreter.

    Raises:
        BenchError: There is none.
    """
    beside = Path(sys.executable).with_name("claude-vm")
    found = beside if beside.exists() else Path(shutil.which("claude-vm") or "")
    if not found.is_file():
        raise BenchError("the command claude-vm is not installed", "install it, as the README says")
    return found


class Site:
    """One home with a daemon. `env` is what its clients are started with; `project` where they stand."""

    def __init__(
        self, root: Path, project: Path, *, settings: str = "", env: Mapping[str, str] | None = None
    ) -> None:
        self.root = root
        self.project = project
        self.home = root / "home"
        user = root / "user"
        for folder in (self.home, user):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (user / ".claude-vm.toml").write_text(settings)
        self.env = {name: os.environ[name] for name in _KEPT if name in os.environ}
        self.env |= {
            "HOME": str(user),
            "CLAUDE_VM_HOME": str(self.home),
            "CLAUDE_VM_IDLE_EXIT": "300",
            "TERM": "xterm-256color",
            **(env or {}),
        }

    @property
    def runtime(self) -> Path:
        """Where the sockets of this home are."""
        return Path(paths.runtime_directory(str(self.home)))

    @property
    def by_hand(self) -> Path:
        """Where what is started by hand has its files."""
        return self.root / "by-hand"

    def words(self, *words: str, timeout_s: float = WORD_S) -> subprocess.CompletedProcess[bytes]:
        """Run a command that is not measured."""
        name = f"claude-vm {' '.join(words)}"
        return finished([program(), *words], name=name, timeout_s=timeout_s, env=self.env, cwd=self.project)

    def do(self, *words: str) -> bytes:
        """Run a command that is not measured and must succeed; return its output.

        Raises:
            BenchError: It fails; the text has its last line.
        """
        done = self.words(*words)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()[:1]
            raise BenchError(f"claude-vm {' '.join(words)}: {said[0] if said else done.returncode}")
        return done.stdout

    def sessions(self) -> list[dict[str, Any]]:
        """Return the daemon's sessions, ended ones too, with their marks; nothing where it does not tell."""
        done = self.words("ps", "--all", "--json")
        if done.returncode:
            return []
        rows = json.loads(done.stdout)
        return rows if isinstance(rows, list) else []

    def fill(self, count: int) -> None:
        """Return when so many VMs are warm.

        Raises:
            UnavailableError: There is no pool, or it does not fill.
        """
        done = self.words("pool", "fill", str(count))
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()[:1]
            raise UnavailableError(f"no warm VMs: {said[0] if said else done.returncode}")

    def share_template(self, source: Path, record: TemplateRecord, *, lent: bool = False) -> None:
        """Link a generation of a template from another home, as the current one.

        It is the template of the project that it was made for, or, if it is `lent`, of this site's.
        """
        name = template_name(find_project(self.project).template_root) if lent else record.name
        folder = self.home / "templates" / name / record.driver
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        origin = (source / "templates" / record.name / record.driver / record.generation).resolve()
        if lent:
            _renamed(origin, folder / record.generation, name, self.project)
        else:
            (folder / record.generation).symlink_to(origin)
        (folder / "current").symlink_to(record.generation)
        self.share_cache(source)

    def share_cache(self, source: Path) -> None:
        """Take images and downloads from another home."""
        with contextlib.suppress(FileExistsError):
            (self.home / "cache").symlink_to((source / "cache").resolve())

    def close(self) -> None:
        """End the daemon with all that it has, and remove the home."""
        with contextlib.suppress(BenchError):
            self.words("daemon", "stop", "--force", timeout_s=60)
        # What was started by hand is known to no daemon.
        for found in find_marked(str(self.by_hand)):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(found.pid, signal.SIGKILL)
        # These have short paths elsewhere, where those of the home are too long.
        for folder in (self.runtime, lima_home(self.home)):
            if not folder.is_relative_to(self.root) and is_ours(folder):
                shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(self.root, ignore_errors=True)


def _renamed(origin: Path, folder: Path, name: str, project: Path) -> None:
    """Make a generation that has another's files, and another name and project in its record."""
    folder.mkdir(mode=0o700)
    for path in origin.iterdir():
        if path.name != RECORD:
            (folder / path.name).symlink_to(path)
    stored = json.loads((origin / RECORD).read_bytes())
    stored.get("record", stored).update(name=name, project=str(project))
    (folder / RECORD).write_text(json.dumps(stored))


@contextlib.contextmanager
def open_folder(home: Path) -> Iterator[Path]:
    """Give a folder for the sites of one run; remove it at the end, and those that dead runs left before."""
    parent = home / "bench"
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for folder in sorted(parent.iterdir()):
        _sweep(folder)
    folder = parent / secrets.token_hex(3)
    folder.mkdir(mode=0o700)
    with locks.locked(folder / "lock"):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                parent.rmdir()


def _sweep(folder: Path) -> None:
    """Remove what a dead run left: a daemon of each home finds and deletes its VMs."""
    try:
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if locks.try_lock(lock):
            for root in sorted(path for path in folder.iterdir() if (path / "home").is_dir()):
                site = Site(root, folder)
                with contextlib.suppress(BenchError):
                    site.words("ps")
                site.close()
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
