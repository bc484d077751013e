"""A user with a home of their own, who runs the real client and daemon on simulated guests."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

PROGRAM = Path(sys.executable).with_name("claude-vm")


class User:
    """A home with a project, where the simulated driver is the configured one, and nothing is kept ready."""

    def __init__(self, root):
        self.home = root / "home"
        self.data = self.home / ".claude-vm"
        self.project = root / "project"
        self.home.mkdir()
        self.project.mkdir()
        # What is left of a session is easier to see when nothing is made ready for the next one.
        (self.home / ".claude-vm.toml").write_text("[pool]\nsize = 0\n")
        self.env = {"HOME": str(self.home), "PATH": os.environ["PATH"], "CLAUDE_VM_DRIVER": "sim"}
        self.env["CLAUDE_VM_VALIDATE"] = "1"
        self.started = []

    def run(self, *args, env=None, cwd=None, data=b""):
        return subprocess.run(
            [PROGRAM, *args],
            cwd=cwd or self.project,
            env=self.env | (env or {}),
            input=data,
            capture_output=True,
            check=False,
            timeout=90,
        )

    def popen(self, *args, env=None):
        process = subprocess.Popen(
            [PROGRAM, *args],
            cwd=self.project,
            env=self.env | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.started.append(process)
        return process

    def json(self, *args):
        done = self.run(*args, "--json")
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    def json_in(self, cwd, *args):
        done = self.run(*args, "--json", cwd=cwd)
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    def daemon_pid(self):
        done = self.run("daemon", "status", "--json")
        return json.loads(done.stdout)["pid"]

    def stop_daemon(self):
        """Stop the daemon and wait until its process is gone: it says that it ends before it has."""
        pid = self.daemon_pid()
        assert self.run("daemon", "stop").returncode == 0
        wait_until(lambda: not psutil.pid_exists(pid))

    def close(self):
        for process in self.started:
            process.kill()
            process.communicate()
        self.run("daemon", "stop", "--force")
        for log in (self.data / "logs").glob("*.log*"):
            broken = [line for line in log.read_text().splitlines() if '"core-broken"' in line]
            assert not broken, broken[0]


def sleeper(user, *flags):
    session = user.popen(*flags, "shell", "--", "sh", "-c", "echo up; exec sleep 600")
    assert session.stdout.readline() == b"up\n"
    return session


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def script(user, **calls):
    user.data.mkdir(exist_ok=True)
    (user.data / "sim.json").write_text(json.dumps({"calls": calls}))
