import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from claude_vm.supervisor.cli import daemon
from claude_vm.supervisor.cli.launch import daemon_environment
from claude_vm.supervisor.wire.client import RefusedError
from claude_vm.supervisor.wire.shortage import NotWritableError

FAKES = Path(__file__).parent

START = """
import os, sys
from claude_vm.supervisor.cli import daemon, launch
from claude_vm.supervisor.wire.errors import WireError
real = launch.daemon_environment
launch.daemon_environment = lambda e, h: {**real(e, h), "PYTHONPATH": %r}
launch.launch.__defaults__ = ("fake_daemon",)
try:
    daemon.connect_or_launch()
except WireError as error:
    print(error.code, error, error.hint if hasattr(error, "hint") else "")
    sys.exit(1)
"""


@pytest.fixture
def start(idle, home, tmp_path):
    """Start a fake daemon that behaves as told, from a client in `tmp_path` with a secret and open files."""

    def start(mode, **options):
        (home / "mode").write_text(mode)
        reader, writer = os.pipe()
        os.set_inheritable(writer, True)
        try:
            return subprocess.run(
                [sys.executable, "-c", START % str(FAKES)],
                env={
                    **idle.environ,
                    "ANTHROPIC_API_KEY": "canary",
                    "SSH_AUTH_SOCK": "/agent",
                    "https_proxy": "http://user:canary@proxy",
                    "CLAUDE_VM_MEMORY": "4",
                    "TMPDIR": "/tmp/x",
                    "LC_TIME": "C",
                },
                cwd=tmp_path,
                close_fds=False,
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
                **options,
            )
        finally:
            os.close(reader)
            os.close(writer)

    return start


def test_the_daemon_is_detached_from_everything_of_the_client(start, home):
    done = start("ok 1", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    told = json.loads((home / "told.json").read_text())
    environ = told["environ"]
    report = environ.pop("CLAUDE_VM_READY_FD")
    environ.pop("PYTHONPATH")
    environ.pop("LC_CTYPE", None)
    assert sorted(environ) == ["CLAUDE_VM_HOME", "HOME"]
    assert told["cwd"] == "/"
    assert told["umask"] == 0o077
    assert told["session"] == told["group"] != told["pid"]
    assert told["hangup"]
    assert told["blocked"] == []
    assert "" not in told["path"]
    log = str(home / "logs" / "daemon.log")
    assert told["descriptors"].pop("0") == "/dev/null"
    assert [told["descriptors"].pop("1"), told["descriptors"].pop("2")] == [log, log]
    assert told["descriptors"].pop(report).startswith("pipe:")
    assert told["descriptors"] == {}


def test_a_daemon_that_says_why_it_fails_is_quoted(start, home):
    done = start("ENOSPC: disk full")
    assert done.returncode == 1
    assert (
        done.stdout
        == f"daemon-failed the daemon does not start: ENOSPC: disk full see {home}/logs/daemon.log\n"
    )


def test_a_daemon_that_crashes_shows_its_last_words(start, home):
    done = start("crash")
    assert "the daemon does not start: no module named" in done.stdout
    assert f"see {home}/logs/daemon.log" in done.stdout


def test_a_daemon_that_says_nothing_is_an_error(start):
    assert "it ended without a message" in start("silent").stdout


@pytest.mark.parametrize(("words", "status"), [(["ps"], 1), (["shell", "true"], 125), (["a task"], 125)])
def test_the_client_tells_why_there_is_no_daemon_and_exits_as_its_command_does(idle, home, words, status):
    """The real client and daemon; the daemon's folder can't be made."""
    (home / "logs").write_text("in the way")
    done = idle.run(*words)
    assert done.returncode == status
    assert b"Traceback" not in done.stderr
    assert done.stderr.startswith(f"claude-vm: {home}/logs is no directory".encode())


def test_an_unsafe_directory_is_not_used(idle, home, tmp_path):
    (home / "run").symlink_to(tmp_path)
    done = idle.run("ps")
    assert done.returncode == 1
    assert b"symbolic link" in done.stderr
    assert b"[unsafe-path]" in done.stderr


def test_clients_that_come_together_start_one_daemon(home, idle):
    (home / "mode").write_text("ok 4")
    command = [sys.executable, "-c", START % str(FAKES)]
    clients = [subprocess.Popen(command, env=idle.environ) for _ in range(4)]
    assert [client.wait(30) for client in clients] == [0, 0, 0, 0]
    assert (home / "starts").read_text() == "x"


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("PATH", False),
        ("CLAUDE_VM_IDLE_EXIT", True),
        ("LC_ALL", False),
        ("CLAUDE_VM_DISK", False),
        ("no_proxy", False),
        ("HTTPS_PROXY", False),
        ("SSL_CERT_FILE", False),
        ("npm_config_registry", False),
        ("npm_config__auth", False),
        ("ANTHROPIC_API_KEY", False),
        ("CLAUDE_CODE_OAUTH_TOKEN", False),
        ("AWS_SECRET_ACCESS_KEY", False),
        ("SSH_AUTH_SOCK", False),
        ("LD_PRELOAD", False),
        ("PYTHONPATH", False),
        ("PYTHONSTARTUP", False),
    ],
)
def test_only_listed_variables_go_to_the_daemon(name, kept):
    assert (name in daemon_environment({name: "x"}, "/h")) is kept


def test_a_relative_home_is_absolute_for_the_daemon():
    assert daemon_environment({"CLAUDE_VM_HOME": "data"}, "/x/data") == {"CLAUDE_VM_HOME": "/x/data"}


def test_a_daemon_of_another_version_with_sessions_says_how_to_stop_it(idle):
    idle.serve(
        {"code": "version-mismatch-busy", "message": "daemon 0.0", "hint": "run: claude-vm daemon stop"}
    )
    done = idle.run("ps")
    assert done.returncode == 1
    assert done.stderr == b"claude-vm: daemon 0.0 [version-mismatch-busy]\n  run: claude-vm daemon stop\n"


def test_an_idle_daemon_of_another_version_is_replaced(idle, home):
    idle.serve({"code": "version-mismatch-idle", "message": "old", "hint": ""})
    (home / "mode").write_text("ok 1")
    program = START % str(FAKES) + "\n"
    program = program.replace("daemon.connect_or_launch()", "daemon.attend(daemon.connect(), ['ps'])")
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=idle.environ,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    # The fake hangs up at once, as one that dies does. So the client starts another, which finds the socket
    # of the first in its way.
    assert done.stdout.startswith("daemon-failed ")
    assert (home / "starts").read_text() == "xx"
    assert json.loads((home / "told.json").read_text())["environ"]["CLAUDE_VM_HOME"] == str(home)


def test_a_socket_that_nobody_serves_counts_as_no_daemon(idle, home):
    (home / "run").mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(home / "run" / "daemon.sock"))
    done = idle.run("daemon", "status")
    assert (done.returncode, done.stdout) == (1, b"not running\n")


@pytest.mark.parametrize("daemon_runs_by_then", [False, True])
def test_who_stands_in_for_a_daemon_waits_for_another_that_does_right_now(monkeypatch, daemon_runs_by_then):
    short = NotWritableError(errno.ENOSPC, "/j")
    asked = []

    def run_in_process(argv, why):
        asked.append((argv, why))
        if len(asked) == 1:
            raise RefusedError("already-running", "supervisor 'daemon' is running", "")
        return 7

    def no_daemon():
        raise short

    monkeypatch.setattr(daemon, "connect_or_launch", no_daemon)
    monkeypatch.setattr(daemon, "run_in_process", run_in_process)
    monkeypatch.setattr(daemon, "connect", lambda: "its socket" if daemon_runs_by_then else None)
    monkeypatch.setattr(daemon, "attend", lambda connection, argv: (connection, argv))
    done = daemon.run_by_daemon(["ps"])
    assert done == (("its socket", ["ps"]) if daemon_runs_by_then else 7)
    assert asked == [(["ps"], short)] * (1 if daemon_runs_by_then else 2)
