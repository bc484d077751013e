"""A `limactl` to test: the stand-in always, and the real one where there is one; see `tests/conftest.py`.

What the suite says of one holds for the other. So it asks for what a driver relies on: files, states, exit
statuses, events, log lines and the words of errors. The VMs stand still (QEMU's ``-S``): none of this needs a
guest, and none of them uses a processor.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psutil
import pytest

DEADLINE_S = 60.0
QEMU = "qemu-system-x86_64"
ARGUMENTS = "-machine q35,vmport=off -accel tcg,thread=multi,tb-size=64 -cpu max -S"

_LINE = re.compile(r'time="[^"]*" level=(\w+) msg=("(?:\\.|[^"\\])*"|\S*)(.*)')


def until(condition, what="it"):
    """Return the condition's first true value."""
    deadline = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.01)
    return value


class Done:
    """A command that has ended. `log` holds what it logged: pairs of level and message."""

    def __init__(self, done):
        self.status = done.returncode
        self.out = done.stdout.decode()
        self.err = done.stderr.decode()
        found = [_LINE.fullmatch(line) for line in self.err.splitlines()]
        self.log = [(line[1], _unquoted(line[2])) for line in found if line]

    def __repr__(self):
        return f"status {self.status}\n{self.out}\n{self.err}"

    def said(self, level):
        return [message for found, message in self.log if found == level]

    def expect(self, *errors):
        """Expect the command to fail with this error, or to succeed without one."""
        assert (self.status, self.said("fatal")) == ((1, list(errors)) if errors else (0, [])), self
        return self


def _unquoted(text):
    return json.loads(text) if text.startswith('"') else text


class Lima:
    """A `limactl` with a home of its own, a disk image, and everything that a test starts in it."""

    def __init__(self, prefix):
        self.prefix = prefix
        self.root = Path(tempfile.mkdtemp(prefix="lc-", dir="/tmp"))
        self.home = self.root / "h"
        self.image = self.root / "image.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", self.image, "2M"], check=True)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        kept = {key: value for key, value in os.environ.items() if key in ("PATH", "USER", "LOGNAME", "LANG")}
        self.env = kept | {"HOME": str(self.root), "LIMA_HOME": str(self.home)}
        self.env["PATH"] = f"{prefix / 'bin'}:{kept['PATH']}"
        self.env["QEMU_SYSTEM_X86_64"] = f"{QEMU} {ARGUMENTS}"

    def command(self, *words):
        return ["limactl", "--tty=false", *words]

    def run(self, *words, env=None, data=b"", cwd=None):
        """Run a command to its end."""
        done = subprocess.run(
            self.command(*words),
            env=self.env | (env or {}),
            input=data,
            cwd=cwd or self.root,
            capture_output=True,
            timeout=DEADLINE_S,
            check=False,
        )
        return Done(done)

    def document(self, **changes):
        """Return an instance's configuration, with other values for some fields."""
        found = {
            "plain": True,
            "images": [{"location": str(self.image)}],
            "cpus": 1,
            "memory": "64MiB",
            "disk": "4MiB",
            "firmware": {"legacyBIOS": True},
            "hostResolver": {"enabled": False},
            "containerd": {"user": False},
            "ssh": {"localPort": self.port},
        }
        return found | changes

    def write(self, **changes):
        """Write the file that describes an instance."""
        path = self.root / "instance.yaml"
        path.write_text(json.dumps(self.document(**changes)))
        return path

    def create(self, name="a", **changes):
        """Make an instance, and return its folder."""
        self.run("create", "--name", name, str(self.write(**changes))).expect()
        return self.home / name

    def delete(self, name="a"):
        """Delete an instance that may run. The host agent that this kills may have written once more."""
        done = self.run("delete", "--force", name)
        if done.status and done.said("fatal")[0].endswith("directory not empty"):
            assert not (self.home / name / "lima.yaml").exists()
            shutil.rmtree(self.home / name)
        else:
            done.expect()

    def begin(self, *words, env=None, **options):
        """Start a command that stays; it ends with the test."""
        return subprocess.Popen(
            self.command(*words),
            env=self.env | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )

    @contextlib.contextmanager
    def started(self, name="a", *, env=None):
        """Give the process of ``start --foreground`` once the VM stands; what is left of it is killed."""
        folder = self.home / name
        process = self.begin("start", "--foreground", name, env=env)
        try:
            until(lambda: process.poll() is not None or _listens(folder / "qmp.sock"), "QEMU's start")
            until(lambda: process.poll() is not None or _lines(folder / "ha.stdout.log"), "the first event")
            yield process
        finally:
            process.kill()
            process.communicate()
            self.kill_processes()

    def pid(self, name, which):
        """Return what a file with a process id says; None without one."""
        with contextlib.suppress(OSError, ValueError):
            return int((self.home / name / f"{which}.pid").read_text())

    def listed(self, name="a"):
        """Return what ``list --json`` says of an instance."""
        done = self.run("list", "--json", name)
        assert done.status == 0, done
        return json.loads(done.out)

    def events(self, name="a"):
        return [json.loads(line) for line in _lines(self.home / name / "ha.stdout.log")]

    def log(self, name="a"):
        """Return the host agent's log: pairs of level and message."""
        found = [json.loads(line) for line in _lines(self.home / name / "ha.stderr.log")]
        return [(line["level"], line["msg"]) for line in found]

    def phases(self, name="a"):
        return [message for level, message in self.log(name) if level == "info"]

    def processes(self):
        """Return all processes that belong to this home, or to a program of the test."""
        mark = str(self.root)
        every = psutil.process_iter(["cmdline"])
        return [process for process in every if mark in " ".join(process.info["cmdline"] or [])]

    def kill_processes(self):
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        until(lambda: not self.processes(), "the end of all processes")

    def close(self):
        self.kill_processes()
        shutil.rmtree(self.root)


def _listens(path):
    """Tell whether a program listens at a socket's path, which may be a former one's."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
        except OSError:
            return False
    return True


def _lines(path):
    """Return a file's whole lines."""
    try:
        return path.read_text().splitlines() if path.read_bytes().endswith(b"\n") else []
    except FileNotFoundError:
        return []


def end_vm(lima, name="a"):
    """Let a VM end by itself, as one does that is shut down."""
    os.kill(lima.pid(name, "qemu"), signal.SIGTERM)


@pytest.fixture
def ending():
    return end_vm


@pytest.fixture
def waiting():
    return until


@pytest.fixture
def lima(limactl):
    """Lima in a home of the test's own, where nothing runs afterwards."""
    if os.geteuid() == 0:
        pytest.skip("limactl refuses to run as root")
    found = Lima(limactl)
    try:
        yield found
        # A host agent that is killed with its VM, or told to end, has its last moments still.
        psutil.wait_procs(found.processes(), timeout=10)
        left = [" ".join(process.info["cmdline"]) for process in found.processes()]
    finally:
        found.close()
    assert left == []
