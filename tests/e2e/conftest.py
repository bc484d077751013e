"""The installed `claude-vm` in a home of its own, with real VMs; and the check that nothing of it is left.

The template is built once for the whole test run. Base images and Claude Code's package are
content-addressed, so they come from the cache of the user who runs the tests, and are put there.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from claude_vm.context.project import find_project, template_name

PROGRAM = Path(sys.executable).with_name("claude-vm")
SETUP_TIMEOUT_S = 1200
RUN_TIMEOUT_S = 240
LEAK_DEADLINE_S = 15


def _load(name):
    specification = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


LeakCheck = _load("leaks").LeakCheck
Tmux = _load("tmux").Tmux
_scripted_api = _load("scripted_api")


class Installation:
    """The program with a home, a project and a template."""

    program = PROGRAM

    def __init__(self, root, driver="qemu"):
        self.driver = driver
        self.user_home = root / "home"
        self.home = self.user_home / ".claude-vm"
        self.project = root / "project"
        self._started = []
        self.home.mkdir(parents=True, exist_ok=True)
        self.project.mkdir(exist_ok=True)
        cache = Path.home() / ".claude-vm" / "cache"
        cache.mkdir(parents=True, exist_ok=True)
        if not (self.home / "cache").is_symlink():
            (self.home / "cache").symlink_to(cache)
        keep = ("PATH", "USER", "LOGNAME", "LANG", "SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS")
        self.env = {k: v for k, v in os.environ.items() if k in keep or k.lower().endswith("_proxy")}
        self.env |= {
            "HOME": str(self.user_home),
            "TERM": "xterm-256color",
            "CLAUDE_VM_DRIVER": driver,
            "CLAUDE_VM_VALIDATE": "1",
            "CLAUDE_VM_MEMORY": "1",
            "CLAUDE_VM_CPUS": "2",
            "CLAUDE_VM_DISK": "8",
            "npm_config_userconfig": str(Path.home() / ".npmrc"),
        }
        self.env |= {k: v for k, v in os.environ.items() if k.lower() == "npm_config_registry"}
        # What a test leaves is plain to see; those of the pool ask for one.
        self.configure("[pool]\nsize = 0\n")

    def configure(self, text):
        """Write the user's global file."""
        (self.user_home / ".claude-vm.toml").write_text(text)

    def popen(self, *args, cwd=None, env=None, **options):
        """Start the program; the fixture `claude_vm` ends it if the test does not."""
        started = subprocess.Popen(
            [PROGRAM, *args], cwd=cwd or self.project, env=self.env | (env or {}), **options
        )
        self._started.append(started)
        return started

    def end_started(self):
        """Kill what a failed test left running, and close its pipes."""
        for process in self._started:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
        self._started.clear()

    def run(self, *args, cwd=None, env=None, timeout=RUN_TIMEOUT_S, data=b"", **options):
        """Run the program to its end on pipes; stdout and stderr are bytes."""
        return subprocess.run(
            [PROGRAM, *args],
            cwd=cwd or self.project,
            env=self.env | (env or {}),
            input=data,
            capture_output=True,
            timeout=timeout,
            check=False,
            **options,
        )

    def shell(self, *words, flags=(), **options):
        return self.run(*flags, "shell", "--", *words, **options)

    def daemon_pid(self):
        """Return the pid of this home's daemon, or None."""
        for process in psutil.process_iter(["cmdline", "environ"]):
            words = process.info["cmdline"] or []
            if "claude_vm.supervisor.daemon" not in words:
                continue
            if (process.info["environ"] or {}).get("HOME") == str(self.user_home):
                return process.pid
        return None

    def vm_pids(self):
        """Return the pids of this home's VMs."""
        return [
            p.pid
            for p in psutil.process_iter(["name", "cmdline"])
            if (p.info["name"] or "").startswith("qemu-system")
            and str(self.home) in " ".join(p.info["cmdline"] or [])
        ]

    def lend_template(self, path):
        """Make the template of the project that of the project at `path` too, as a record with links."""
        ours, theirs = (template_name(find_project(p).template_root) for p in (self.project, path))
        templates = self.home / "templates"
        origin = (templates / ours / self.driver / "current").resolve()
        generation = templates / theirs / self.driver / origin.name
        generation.mkdir(mode=0o700, parents=True)
        for part in origin.iterdir():
            if part.name != "template.json":
                (generation / part.name).symlink_to(part)
        stored = json.loads((origin / "template.json").read_bytes())
        stored["record"].update(name=theirs, project=str(path))
        (generation / "template.json").write_text(json.dumps(stored))
        generation.with_name("current").symlink_to(generation.name)

    def stop_daemon(self):
        if pid := self.daemon_pid():
            os.kill(pid, signal.SIGTERM)
            psutil.wait_procs([p for p in psutil.process_iter() if p.pid == pid], timeout=30)


def wait_until(condition, timeout=60.0, interval=0.05):
    """Return the condition's first true value; fail when it does not come in time."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"did not happen within {timeout} s: {condition}")
        time.sleep(interval)
    return value


@pytest.fixture(scope="session")
def waiting():
    return wait_until


@pytest.fixture(scope="session")
def installation(request):
    """A home with a template for one project, and no daemon left at the end."""
    root = Path(tempfile.mkdtemp(prefix="e2e-", dir="/tmp"))
    made = Installation(root, request.config.getoption("--driver"))
    subprocess.run(["git", "init", "-q", "-b", "main", made.project], check=True)
    (made.project / "README").write_text("a project\n")
    try:
        done = made.run("setup", timeout=SETUP_TIMEOUT_S)
        assert done.returncode == 0, done.stderr.decode()
        yield made
    finally:
        made.stop_daemon()
        left = made.vm_pids()
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(root, ignore_errors=True)
    assert left == []


@pytest.fixture
def claude_vm(installation):
    """The installation, with a check after the test that the test's sessions left nothing."""
    check = LeakCheck(installation.home)
    yield installation
    installation.end_started()
    deadline = time.monotonic() + LEAK_DEADLINE_S
    while (leaks := check.leaks()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert leaks == []


@pytest.fixture
def folder(installation, request):
    """A folder of the test's own inside the project."""
    path = installation.project / request.node.name[:80].replace("/", "_")
    path.mkdir()
    return path


@pytest.fixture
def api():
    """A scripted Messages API on loopback."""
    with _scripted_api.ScriptedApi() as server:
        yield server


@pytest.fixture
def tmux_class():
    """A real terminal."""
    return Tmux


@pytest.fixture
def script_class():
    """What the scripted API answers to a task."""
    return _scripted_api.Script
