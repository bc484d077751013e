"""Many clients and no daemon; clients and daemons of different versions. Real processes, simulated VMs."""

import os
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import psutil
import pytest
from claude_vm_tests_user import wait_until

from claude_vm.supervisor.wire.paths import socket_path

pytestmark = pytest.mark.timeout(180)

CROWD = 20
OTHER_VERSION = """
import sys
from claude_vm.supervisor.wire import version
version.VERSION = "0.0.1"
from claude_vm.supervisor.cli.main import main
sys.exit(main())
"""


def daemons(user):
    """Return the processes of all daemons of this home, also of one that was refused and has not ended."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        words, environ = process.info["cmdline"] or [], process.info["environ"] or {}
        if "claude_vm.supervisor.daemon" in words and environ.get("HOME") == str(user.home):
            found.append(process.pid)
    return found


def times_served(user):
    return (user.data / "logs" / "daemon.log").read_text().count('"event": "serving"')


def other_version(user, *words):
    """Start the program as if it were another version of us."""
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER_VERSION, *words],
        cwd=user.project,
        env=user.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    user.started.append(process)
    return process


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_twenty_clients_at_once_without_a_daemon_start_one_and_are_all_served(pool_user, end):
    assert pool_user.run("pool", "fill").returncode == 0
    if end == "killed":
        os.kill(pool_user.daemon_pid(), signal.SIGKILL)
        wait_until(lambda: daemons(pool_user) == [])
    else:
        pool_user.stop_daemon()
    before = times_served(pool_user)
    clients = [pool_user.popen("ps", "--json") for _ in range(CROWD)]
    said = [client.communicate(timeout=90) for client in clients]
    assert [(client.returncode, out) for client, (out, _) in zip(clients, said, strict=True)] == [
        (0, b"[]\n")
    ] * CROWD
    assert len(daemons(pool_user)) == 1
    assert times_served(pool_user) == before + 1
    assert pool_user.survey.settle() == []


def test_two_daemons_in_the_foreground_at_once_are_one(user):
    user.stop_daemon()
    both = [user.popen("daemon", "run") for _ in range(2)]
    wait_until(lambda: any(process.poll() is not None for process in both))
    (loser,) = (process for process in both if process.poll() is not None)
    (winner,) = (process for process in both if process.poll() is None)
    assert loser.returncode == 1
    assert b"already-running" in loser.communicate()[1]
    wait_until(lambda: user.run("daemon", "status").returncode == 0)
    assert user.daemon_pid() == winner.pid
    winner.send_signal(signal.SIGTERM)
    assert winner.wait(30) == 0
    winner.communicate()


def test_an_idle_daemon_of_an_old_version_makes_room_for_ours(user):
    user.stop_daemon()
    old = other_version(user, "daemon", "run")
    wait_until(lambda: user.run("daemon", "status").returncode == 0 or old.poll() is not None)
    assert user.run("ps").returncode == 0
    assert old.wait(30) == 0
    old.communicate()
    assert user.daemon_pid() != old.pid
    assert user.run("shell", "exit 3").returncode == 3
    assert user.survey.settle() == []


@pytest.mark.parametrize("who", ["client", "daemon"])
def test_sessions_survive_a_client_or_daemon_of_another_version_that_is_told_why(user, who):
    user.stop_daemon()
    ours, stranger = user.popen, partial(other_version, user)
    if who == "daemon":
        ours, stranger = stranger, ours
        old = ours("daemon", "run")
        listening = Path(socket_path(str(user.data)))
        wait_until(lambda: listening.exists() or old.poll() is not None)
    session = ours("shell", "--", "sh", "-c", "echo up; exec sleep 600")
    assert session.stdout.readline() == b"up\n"
    for words, status in ((("ps",), 1), (("shell", "true"), 125)):
        refused = stranger(*words)
        said = refused.communicate(timeout=60)[1]
        assert refused.returncode == status
        assert b"[version-mismatch-busy]" in said
        assert b"claude-vm daemon stop" in said
        assert b"Traceback" not in said
    assert session.poll() is None
    stop = stranger("daemon", "stop", "--force")
    stop.communicate(timeout=60)
    assert stop.returncode == 0
    assert session.wait(30) == 125
    wait_until(lambda: daemons(user) == [])


def test_a_client_whose_daemon_dies_before_it_has_answered_starts_the_next_one(user):
    user.stop_daemon()
    path = Path(socket_path(str(user.data)))
    path.parent.mkdir(mode=0o700, exist_ok=True)  # a daemon takes one outside of its home with it
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        client = user.popen("shell", "exit 3")
        dying, _ = listener.accept()
        listener.close()
        dying.close()
    said = client.communicate(timeout=90)[1]
    assert client.returncode == 3, said.decode()
