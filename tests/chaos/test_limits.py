"""The host runs short: of disk, of file handles, of memory. Simulated VMs.

What runs goes on, what is asked for is refused with a reason, and when there is room again all is as before.
"""

import contextlib
import json
import os
import resource
import shutil
import socket
import sqlite3
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
        self.remount(f"size={size},mode=700")

    def remount(self, options):
        # with its source, or mount(8) adds what it reads of the present mount: ids that nobody has in here
        words = ["mount", "-o", f"remount,{options}", "tmpfs", self.disk]
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


# Words, and what they end with where nothing can be written: 0 works, "refused" is refused with the reason.
WITHOUT_ROOM = {
    ("ps",): 0,
    ("ps", "--all", "--json"): 0,
    ("list",): 0,
    ("list", "--json", "--disk-usage"): 0,
    ("info",): 0,
    ("info", "--json"): 0,
    ("pool", "status"): 0,
    ("pool", "status", "--json"): 0,
    ("pool", "drain"): 0,
    ("pool", "drain", "--all"): 0,
    ("version",): 0,
    ("version", "--json"): 0,
    ("doctor", "--json"): {0, 1},  # as this host is
    ("daemon", "stop"): 0,
    ("daemon", "status", "--json"): 1,
    ("stop", "--all"): 0,
    ("shell", "true"): "refused",
    ("agent",): "refused",
    ("--auto-setup", "shell", "true"): "refused",
    ("setup", "--no-agent"): "refused",
    ("pool", "fill", "1"): "refused",
    ("daemon", "run"): "refused",
    ("clean", "--yes"): 0,
    ("clean-all", "--yes"): 0,
}
"""The last ones delete what the others show."""

ALL = tuple(WITHOUT_ROOM)
# One of each kind: the others differ from these in what they print.
SOME = (
    ("ps",),
    ("list", "--json", "--disk-usage"),
    ("info",),
    ("pool", "status", "--json"),
    ("doctor", "--json"),
    ("daemon", "stop"),
    ("shell", "true"),
    ("setup", "--no-agent"),
    ("clean", "--yes"),
    ("clean-all", "--yes"),
)
if "CHAOS_KILLS" in os.environ:  # all of them everywhere are for `make chaos`
    SOME = ALL


def check_without_room(run, code, *, deletes=True, ways):
    """Run commands where nothing can be written; each works or is refused with the reason's code.

    `ways` are the flags before them, each with the commands that are run so. Without `deletes` what is there
    can't be deleted either.
    """
    for words, expected in WITHOUT_ROOM.items():
        for flags, commands in ways.items():
            if words not in commands or (flags and words[0] == "daemon"):
                continue
            done = run(*flags, *words)
            told = f"{flags} {words}: {done.returncode} {done.stdout.decode()} {done.stderr.decode()}"
            assert b"Traceback" not in done.stderr, told
            assert b"Logging error" not in done.stderr, told
            assert b"daemon-failed" not in done.stderr, told
            assert b"supervisor-failed" not in done.stderr, told
            if words[0].startswith("clean") and not deletes:
                assert done.returncode == 1
                continue
            if expected == "refused":
                assert done.returncode == (125 if {"shell", "agent"} & {*words} else 1), told
                assert f"[{code}]".encode() in done.stderr, told
                continue
            assert done.returncode in (expected if isinstance(expected, set) else {expected}), told
            if "--json" in words:
                json.loads(done.stdout)
            if not ({"daemon", "version"} & {*words}):
                assert done.stderr.count(b"there are no sessions, no setup and no pool fill") == 1, told


def test_without_room_and_without_a_daemon_each_command_works_or_is_refused(small):
    listed = small.json("list")
    assert listed
    small.stop_daemon()
    small.fill()
    assert json.loads(small.run("list", "--json").stdout) == listed
    check_without_room(small.run, "disk-full", ways={(): ALL, ("--no-daemon",): SOME})
    small.resize("2g")
    assert small.json("list") == []
    assert small.run("setup", "--no-agent").returncode == 0
    assert small.run("shell", "exit 4").returncode == 4


def test_on_a_disk_that_was_never_anything_but_full_each_command_works_or_is_refused(small):
    small.stop_daemon()
    shutil.rmtree(f"{small.there}/data")
    Path(f"{small.there}/other").write_bytes(bytes(1 << 20))  # a size of 0 would be no limit
    small.fill()
    check_without_room(small.run, "disk-full", ways={(): SOME})
    supervisors = Path(f"{small.there}/data/supervisors")
    assert {path.name for path in supervisors.iterdir()} <= {"daemon"}, (
        "those without a daemon left something"
    )
    small.resize("2g")
    assert small.run("setup", "--no-agent").returncode == 0
    assert small.run("shell", "exit 4").returncode == 4


def test_a_daemon_that_goes_away_where_there_is_no_room_for_the_next_one_is_stood_in_for(small):
    """As one of another version that has nothing to do."""
    small.stop_daemon()
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        path = f"{small.there}/data/run/daemon.sock"
        listener.bind(path)
        listener.listen()
        small.fill()
        client = small.popen("list", "--json")
        connection, _ = listener.accept()
        Path(path).unlink()
        connection.close()
    out, told = client.communicate(timeout=90)
    assert client.returncode == 0, told.decode()
    assert len(json.loads(out)) == 1


def test_on_a_read_only_disk_listings_work_and_all_else_is_refused(small):
    listed = small.json("list")
    small.stop_daemon()
    small.remount("ro")
    assert json.loads(small.run("list", "--json").stdout) == listed
    for words in ("ps",), ("info",), ("pool", "status"), ("list",), ("stop", "--all"):
        done = small.run(*words)
        assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr.decode()
        assert b"Read-only file system; until it can be" in done.stderr
    for words in ("setup", "--no-agent"), ("pool", "fill", "1"), ("shell", "true"):
        done = small.run(*words)
        assert done.returncode == (125 if words[0] == "shell" else 1)
        assert b"[not-writable]" in done.stderr
    assert b"Traceback" not in small.run("clean", "--yes").stderr
    small.remount("rw")
    assert small.json("list") == listed
    assert small.run("shell", "exit 4").returncode == 4


@pytest.mark.skipif(os.geteuid() == 0, reason="it needs a user other than root, who may write anywhere")
@pytest.mark.parametrize("made", [True, False], ids=["with data", "without data"])
def test_in_a_home_that_is_closed_for_its_user_each_command_works_or_is_refused(tmp_path, made):
    with contextlib.closing(User(tmp_path)) as user:
        if made:
            assert user.run("setup", "--no-agent").returncode == 0
            user.stop_daemon()
        closed = [Path(path) for path, _, _ in os.walk(user.data if made else user.home)]
        for path in closed:
            path.chmod(0o500)
        try:
            check_without_room(user.run, "not-writable", deletes=not made, ways={(): SOME})
        finally:
            for path in closed:
                path.chmod(0o700)
        assert user.run("setup", "--no-agent").returncode == 0
        assert user.run("shell", "exit 4").returncode == 4


def test_what_a_dead_daemon_left_is_neither_deleted_nor_forgotten_without_room(small):
    session = waiting_session(small)
    pid = small.daemon_pid()
    folder = Path(f"{small.there}/data/sim/daemon")
    small.fill()
    os.kill(pid, 9)
    assert session.wait(30) == 125
    left = sorted(path.name for path in folder.glob("i-*"))
    assert len(left) == 1
    before = journaled(small)
    for words in ("ps",), ("list",), ("info",), ("pool", "status"), ("stop", "--all"):
        done = small.run(*words)
        assert done.returncode == 0, done.stderr.decode()
        assert b"1 VM(s) without a session are left to the next daemon" in done.stderr
    assert sorted(path.name for path in folder.glob("i-*")) == left
    assert journaled(small) == before != []
    done = small.run("clean", "--yes")
    assert (done.returncode, done.stdout.count(b"\n")) == (0, 1), done.stderr.decode()
    assert not list(folder.glob("i-*"))
    assert journaled(small) == before
    small.resize("2g")
    assert small.json("ps") == []
    assert journaled(small) == []
    assert small.run("setup", "--no-agent").returncode == 0
    assert small.run("shell", "exit 4").returncode == 4


def journaled(user):
    """Return the instances that the daemon's journal knows, from a copy: reading would change its log."""
    with tempfile.TemporaryDirectory() as folder:
        for name in "journal.db", "journal.db-wal":
            with contextlib.suppress(FileNotFoundError):
                shutil.copy(f"{user.there}/data/supervisors/daemon/{name}", folder)
        with contextlib.closing(sqlite3.connect(f"{folder}/journal.db")) as journal:
            return journal.execute("SELECT instance_id FROM instances").fetchall()


def test_clients_that_come_together_without_room_are_all_served(small):
    small.stop_daemon()
    small.fill()
    clients = [small.popen("list", "--json") for _ in range(4)]
    for client in clients:
        out, told = client.communicate(timeout=90)
        assert client.returncode == 0, told.decode()
        assert len(json.loads(out)) == 1


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
