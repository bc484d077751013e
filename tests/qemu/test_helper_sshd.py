"""What the helper does with a real sshd, on the loopback and without privileges."""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from claude_vm.drivers.guest.helper import paths
from claude_vm.drivers.guest.helper import sshd as helper_sshd
from claude_vm.drivers.guest.helper.sshd import Sshd

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")

pytestmark = pytest.mark.skipif(SSHD is None, reason="no sshd on this host")


@pytest.fixture
def folder(short, monkeypatch):
    """A scratch folder with a client's key, where sshd finds what it finds in a guest's."""
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    make_key(short / "client")
    (short / "config").write_text(
        f"HostKey {short}/host\nAuthorizedKeysFile {short}/client.pub\nPidFile none\nUsePAM no\n"
        f"StrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        f"PermitRootLogin yes\nLogLevel ERROR\n"
    )
    monkeypatch.setattr(os, "fchown", lambda *_: None)
    monkeypatch.setattr(helper_sshd, "CONFIGURATION", str(short / "config"))
    monkeypatch.setattr(helper_sshd, "SSHD", SSHD)
    monkeypatch.setattr(paths, "SSHD", str(short / "pid"))
    return short


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.fixture
def sshd(folder, port):
    """The helper's sshd, which was told nothing yet."""
    made = Sshd(port)
    yield made
    made._open = False
    made._end()
    made._listener.close()


def make_key(path):
    path.unlink(missing_ok=True)
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


@pytest.fixture
def log_in(folder, port):
    """Start OpenSSH's client, which knows the host key that lies there now."""
    with contextlib.ExitStack() as clients:

        def start(command):
            (folder / "known").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
            words = ["ssh", "-F", "none", "-i", str(folder / "client"), "-p", str(port)]
            words += ["-o", f"UserKnownHostsFile={folder}/known", "-o", "BatchMode=yes"]
            words += [f"{getpass.getuser()}@127.0.0.1", command]
            client = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
            clients.enter_context(client)
            clients.callback(client.kill)
            return client

        yield start


def said(client):
    return client.communicate(timeout=30)[0].strip()


def pid(folder):
    return int((folder / "pid").read_text())


def banner(connection, limit_s):
    connection.settimeout(limit_s)
    with contextlib.suppress(TimeoutError):
        return connection.recv(4)
    return None


def test_a_prepared_sshd_answers_nobody_and_reads_its_host_key_when_it_opens(sshd, folder, port, log_in):
    sshd.prepare()
    with socket.create_connection(("127.0.0.1", port)) as early:
        assert banner(early, 0.5) is None
        make_key(folder / "host")
        sshd.open()
        assert banner(early, 20) == b"SSH-"
    assert said(log_in("echo in")) == "in"


def test_it_opens_also_when_nothing_was_prepared(sshd, folder, port, log_in):
    make_key(folder / "host")
    sshd.open()
    assert said(log_in("echo in")) == "in"


def test_one_whose_helper_dies_while_it_waits_ends_and_accepts_nobody(sshd, folder, port):
    make_key(folder / "host")
    sshd.prepare()
    os.close(sshd._input)
    sshd._input = -1
    deadline = time.monotonic() + 20
    while not (ended := os.waitpid(sshd._pid, os.WNOHANG))[0] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ended[0] == sshd._pid
    sshd._pid = 0
    with socket.create_connection(("127.0.0.1", port)) as early:
        assert banner(early, 0.5) is None


def test_one_that_can_not_be_told_its_configuration_stays_closed_and_is_told_later(sshd, folder, port):
    make_key(folder / "host")
    sshd.prepare()
    (folder / "config").rename(folder / "away")
    with pytest.raises(FileNotFoundError):
        sshd.open()
    with socket.create_connection(("127.0.0.1", port)) as early:
        sshd.reap()
        assert banner(early, 0.5) is None
        assert sshd.down
        (folder / "away").rename(folder / "config")
        time.sleep(helper_sshd._LIVED_S)
        sshd.reap()
        assert not sshd.down
        assert banner(early, 20) == b"SSH-"


def test_a_configuration_that_a_pipe_does_not_take_at_once_is_refused(sshd, folder, port):
    with (folder / "config").open("a") as file:
        file.write("#" * 5000 + "\n")
    with pytest.raises(OSError, match="too large"):
        sshd.open()


def test_it_may_be_killed_when_memory_is_short_before_it_protects_itself(sshd, monkeypatch):
    told = []
    monkeypatch.setattr(helper_sshd, "let_die", lambda pid: told.append((pid, sshd._input >= 0)))
    sshd.prepare()
    assert told == [(sshd._pid, True)]


def test_a_second_identity_replaces_the_first(sshd, folder, port, log_in):
    for _ in range(2):
        make_key(folder / "host")
        sshd.open()
        assert said(log_in("echo in")) == "in"


def test_to_prepare_ends_what_is_connected(sshd, folder, port, log_in):
    make_key(folder / "host")
    sshd.open()
    client = log_in("echo in; sleep 60")
    assert client.stdout.readline() == "in\n"
    sshd.prepare()
    assert client.wait(timeout=20) == 255
    with socket.create_connection(("127.0.0.1", port)) as early:
        assert banner(early, 0.5) is None


def test_one_that_ended_is_started_again_and_serves_who_came_meanwhile(sshd, folder, port, log_in):
    make_key(folder / "host")
    sshd.open()
    assert said(log_in("echo in")) == "in"
    os.kill(pid(folder), signal.SIGKILL)
    client = log_in("echo in again")
    deadline = time.monotonic() + 20
    while client.poll() is None and time.monotonic() < deadline:
        sshd.reap()
        time.sleep(0.05)
    assert said(client) == "in again"


def test_one_that_ends_at_once_is_not_started_all_the_time(sshd, folder, port):
    (folder / "host").write_text("no key")
    sshd.open()
    pids = set()
    deadline = time.monotonic() + 2.5
    while time.monotonic() < deadline:
        sshd.reap()
        pids.add(pid(folder))
        time.sleep(0.01)
    assert 2 <= len(pids) <= 4


def test_the_next_helper_takes_the_port_and_connections_go_on(sshd, folder, port, log_in):
    make_key(folder / "host")
    sshd.open()
    client = log_in("echo in; sleep 3; echo still in")
    assert client.stdout.readline() == "in\n"
    # A helper that was killed: nobody ends its sshd, and its socket is closed with it.
    sshd._listener.close()
    following = Sshd(port)
    try:
        sshd._forget()
        following.open()
        assert said(log_in("echo in")) == "in"
        assert said(client) == "still in"
    finally:
        following._end()
        following._listener.close()


def test_a_number_that_another_program_has_by_now_is_left_alone(folder, port):
    with subprocess.Popen(["sleep", "60"]) as other:
        (folder / "pid").write_text(str(other.pid))
        Sshd(port)._listener.close()
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(timeout=0.5)
        other.kill()
