"""The host runs short: of disk, of file handles, of memory. Simulated VMs.

What runs goes on, what is asked for is refused with a reason, and when there is room again all is as before.
"""

import contextlib
import os
import resource
import subprocess
import tempfile
from pathlib import Path

import psutil
import pytest
from claude_vm_tests_user import PROGRAM, User, wait_until

pytestmark = pytest.mark.timeout(180)


class SmallDisk(User):
    """A user whose data are on a file system of a changeable size, in a mount namespace of its own."""

    def __init__(self, root):
        super().__init__(root)
        self.disk = root / "disk"
        self.disk.mkdir()
        self.data = self.disk / "data"
        self.env["CLAUDE_VM_HOME"] = str(self.data)
        mount = 'mount -t tmpfs -o size=2g,mode=700 tmpfs "$1" && echo mounted && exec sleep 600'
        self.keeper = subprocess.Popen(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh", self.disk],
            stdout=subprocess.PIPE,
        )
        assert self.keeper.stdout.readline() == b"mounted\n"
        target = f"--target={self.keeper.pid}"
        self.inside = [
            "nsenter",
            "--preserve-credentials",
            "--user",
            "--mount",
            target,
            f"--wd={self.project}",
        ]

    def run(self, *args, env=None, cwd=None, data=b""):
        return subprocess.run(
            [*self.inside, PROGRAM, *args],
            env=self.env | (env or {}),
            input=data,
            capture_output=True,
            check=False,
            timeout=90,
        )

    def popen(self, *args, env=None):
        process = subprocess.Popen(
            [*self.inside, PROGRAM, *args],
            env=self.env | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.started.append(process)
        return process

    @property
    def there(self):
        """The disk as a process outside can look at it."""
        return f"/proc/{self.keeper.pid}/root{self.disk}"

    def resize(self, size):
        # with its source, or mount(8) adds what it reads of the present mount: ids that nobody has in here
        words = ["mount", "-o", f"remount,size={size},mode=700", "tmpfs", self.disk]
        subprocess.run([*self.inside, *words], check=True)

    def fill(self):
        """Leave not one byte."""
        found = os.statvfs(self.there)
        self.resize((found.f_blocks - found.f_bfree) * found.f_frsize)
        assert os.statvfs(self.there).f_bfree == 0

    def close(self):
        self.resize("2g")
        super().close()
        self.keeper.kill()
        self.keeper.communicate()


@pytest.fixture
def small():
    # A short path, so that sockets lie in it: who owns the folder for temporary files is nobody in there.
    with tempfile.TemporaryDirectory(prefix="cv-") as root, contextlib.closing(SmallDisk(Path(root))) as made:
        done = made.run("setup", "--no-agent")
        assert done.returncode == 0, done.stderr.decode()
        yield made


def waiting_session(user):
    """A session that writes "up" and ends with 3 when its project has a file "go"."""
    script = "echo up; until [ -e go ]; do sleep 0.1; done; exit 3"
    session = user.popen("shell", "--", "sh", "-c", script)
    assert session.stdout.readline() == b"up\n"
    return session


def refused(done, *codes):
    assert done.returncode == 125
    assert any(f"[{code}]".encode() in done.stderr for code in codes), done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_a_full_disk_refuses_new_sessions_and_the_running_one_goes_on(small):
    running = waiting_session(small)
    small.fill()
    for _ in range(3):
        refused(small.run("shell", "true"), "disk-full", "journal-failed", "system-error")
    assert small.run("ps").returncode == 0
    (small.project / "go").touch()
    assert running.wait(30) == 3
    small.resize("2g")
    assert small.run("shell", "exit 4").returncode == 4
    assert small.json("ps") == []
    wait_until(lambda: not list(Path(f"{small.there}/data/sim/daemon").glob("i-*")))


def test_a_disk_that_is_nearly_full_is_told_as_what_it_is(small):
    small.resize("900m")
    refused(small.run("shell", "true"), "disk-full")
    small.resize("2g")
    assert small.run("shell", "exit 4").returncode == 4


def test_a_daemon_on_a_full_disk_says_why_it_does_not_start_and_starts_when_there_is_room(small):
    small.stop_daemon()
    small.fill()
    done = small.run("ps")
    assert done.returncode in {0, 1}  # what it has to write may find room in a block that is its own
    assert b"Traceback" not in done.stderr
    if done.returncode:
        assert b"No space left" in done.stderr or b"full" in done.stderr
    small.resize("2g")
    assert small.run("shell", "exit 4").returncode == 4


def test_a_session_killed_with_its_supervisor_on_a_full_disk_is_cleaned_up(small):
    session = waiting_session(small)
    small.fill()
    os.kill(small.daemon_pid(), 9)
    assert session.wait(30) == 125
    small.run("ps")
    small.resize("2g")
    assert small.run("ps", "--json").stdout == b"[]\n"
    wait_until(lambda: not list(Path(f"{small.there}/data/sim/daemon").glob("i-*")))


def limited(user, kind, value):
    """Set a limit of the running daemon; return the former one."""
    daemon = psutil.Process(user.daemon_pid())
    before = daemon.rlimit(kind)
    daemon.rlimit(kind, (value, before[1]))
    return daemon, before


def crowd(user, count):
    """Run sessions at once; return (status, what they said) of each."""
    clients = [user.popen("shell", "--", "sh", "-c", "sleep 0.5; exit 3") for _ in range(count)]
    said = [client.communicate(timeout=90)[1] for client in clients]
    return list(zip((client.returncode for client in clients), said, strict=True))


def test_a_daemon_without_file_handles_refuses_sessions_and_serves_when_there_are_some(user):
    daemon, before = limited(user, resource.RLIMIT_NOFILE, 0)
    open_now = daemon.num_fds()
    daemon.rlimit(resource.RLIMIT_NOFILE, (open_now + 45, before[1]))
    ends = crowd(user, 8)
    assert {status for status, _ in ends} <= {3, 125}
    assert any(status == 125 for status, _ in ends), "the limit was never reached"
    assert all(b"[" in said for status, said in ends if status == 125)
    assert not any(b"Traceback" in said for _, said in ends)
    daemon.rlimit(resource.RLIMIT_NOFILE, before)
    assert user.daemon_pid() == daemon.pid
    assert user.run("shell", "exit 4").returncode == 4
    assert user.survey.settle() == []
    wait_until(lambda: daemon.num_fds() <= open_now + 2)


def test_a_daemon_without_memory_refuses_sessions_and_serves_when_there_is_some(user):
    pid = user.daemon_pid()
    daemon, before = limited(user, resource.RLIMIT_AS, psutil.Process(pid).memory_info().vms + (256 << 10))
    ends = crowd(user, 4)
    assert {status for status, _ in ends} <= {3, 125}
    assert not any(b"Traceback" in said for _, said in ends)
    if daemon.is_running():
        daemon.rlimit(resource.RLIMIT_AS, before)
    assert user.run("shell", "exit 4").returncode == 4
    assert user.survey.settle() == []


def test_a_daemon_that_can_start_no_process_refuses_sessions_and_serves_when_it_can(user, tmp_path):
    """Root has no such limit: for it the guest's programs are out of reach instead."""
    daemon, before = limited(user, resource.RLIMIT_NPROC, 1)
    ends = crowd(user, 2)
    assert {status for status, _ in ends} <= {3, 125}
    assert not any(b"Traceback" in said for _, said in ends)
    if os.getuid():
        assert {status for status, _ in ends} == {125}
    daemon.rlimit(resource.RLIMIT_NPROC, before)
    assert user.run("shell", "exit 4").returncode == 4
    assert user.survey.settle() == []
