"""Published ports by the real client and daemon, on simulated guests: their machine is this one."""

import signal
import socket
import struct
import threading
import time

import psutil
import pytest
from claude_vm_tests_user import sleeper, wait_until

pytestmark = pytest.mark.timeout(180)

HEAD = "  sl  local_address rem_address   st\n"


class Server:
    """Listens in the guest, which is this host, and answers each line in capitals."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                while data := connection.recv(1000):
                    connection.sendall(data.upper())

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()


@pytest.fixture
def server():
    made = Server()
    yield made
    made.close()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


def ask(port, address="127.0.0.1", text=b"hello"):
    """Return the answer at a port of this host, or the error that came instead."""
    try:
        with socket.create_connection((address, port), timeout=20) as client:
            client.sendall(text)
            return client.recv(1000)
    except OSError as error:
        return type(error).__name__


def listening(pid):
    """Return where a process listens for TCP."""
    return {c.laddr for c in psutil.Process(pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN}


def ports(user):
    (row,) = user.json("ps")
    return [(p["host"], p["guest"], p["auto"], p["problem"]) for p in row["ports"]]


def guest_listens(user, *numbers):
    """Say what a simulated guest listens at: its own table, not this host's."""
    (folder,) = user.data.glob("sim/daemon/*/home")
    table = folder.parent / "root/proc/net"
    table.mkdir(parents=True, exist_ok=True)
    rows = "".join(f"   0: 00000000:{number:04X} 00000000:0000 0A\n" for number in numbers)
    (table / "new").write_text(HEAD + rows)
    (table / "new").replace(table / "tcp")


def told(session):
    """Return the next line about ports; the simulation says what it is, too."""
    while "NOTHING IS ISOLATED" in (line := session.stderr.readline().decode()):
        pass
    return line


def test_a_published_port_leads_into_the_guest_and_ends_with_the_session(ready, server):
    host = free_port()
    session = sleeper(ready, "--publish", f"{host}:{server.port}")
    assert ask(host) == b"HELLO"
    assert ask(host, "::1") in {b"HELLO", "OSError"}  # there are hosts without it
    assert ports(ready) == [(host, server.port, False, "")]
    assert f"{host}:{server.port}" in ready.run("ps").stdout.decode()
    session.kill()
    wait_until(lambda: ready.json("ps") == [])
    assert ask(host) == "ConnectionRefusedError"


def test_ports_are_on_the_loopback_and_nowhere_else(ready, server):
    host = free_port()
    sleeper(ready, "--publish", f"{host}:{server.port}")
    found = {address for address, port in listening(ready.daemon_pid()) if port == host}
    assert "127.0.0.1" in found
    assert found <= {"127.0.0.1", "::1"}


def test_without_a_word_nothing_of_a_guest_is_published(ready, server):
    sleeper(ready)
    guest_listens(ready, server.port)
    assert len(listening(ready.daemon_pid())) == 1  # the guest's SSH, which is the daemon's own here
    assert ports(ready) == []


def test_a_published_port_works_without_a_daemon(ready, server):
    host = free_port()
    session = sleeper(ready, "--no-daemon", "--publish", f"{host}:{server.port}")
    assert ask(host) == b"HELLO"
    session.send_signal(signal.SIGTERM)
    session.wait(30)
    assert ask(host) == "ConnectionRefusedError"


def test_a_port_that_somebody_has_is_told_before_anything_starts(ready, server):
    mark = ready.project / "ran"
    done = ready.run("--publish", str(server.port), "shell", "touch", "ran")
    assert done.returncode == 125
    text = done.stderr.decode()
    assert f"port {server.port} of this host is not available: Address already in use [port-taken]" in text
    assert f"--publish {server.port + 1}:{server.port}" in text
    assert not mark.exists()
    assert ready.json("ps") == []


def test_a_port_that_another_session_has_is_told_with_the_session(ready, server):
    host = free_port()
    sleeper(ready, "--publish", f"{host}:{server.port}")
    (row,) = ready.json("ps")
    done = ready.run("--publish", str(host), "shell", "true")
    assert done.returncode == 125
    assert f"the session {row['session']} has it [port-taken]".encode() in done.stderr


@pytest.mark.parametrize("spec", ["80", "1023:8080", "2222:22", "0", "65536", "0.0.0.0:80:80", "x"])
def test_what_must_not_be_published_is_refused_before_anything_starts(ready, spec):
    done = ready.run("--publish", spec, "shell", "touch", "ran")
    assert done.returncode == 125
    assert b"--publish" in done.stderr
    assert b"[bad-config]" in done.stderr
    assert not (ready.project / "ran").exists()


def test_ports_of_the_users_file_are_published_and_shown(ready, server):
    host = free_port()
    with (ready.home / ".claude-vm.toml").open("a") as file:
        file.write(f"[[ports]]\nguest = {server.port}\nhost = {host}\n")
    assert ready.json("info")["publish"] == [f"{host}:{server.port}"]
    sleeper(ready)
    assert ask(host) == b"HELLO"


def test_a_port_of_the_users_file_that_somebody_has_is_told_with_its_place_and_can_be_left_out(ready, server):
    before = (ready.home / ".claude-vm.toml").read_text()
    (ready.home / ".claude-vm.toml").write_text(f"{before}[[ports]]\nguest = {server.port}\n")
    done = ready.run("shell", "true")
    assert done.returncode == 125
    text = done.stderr.decode()
    assert f"~/.claude-vm.toml:{before.count(chr(10)) + 1} asks for it; choose another port" in text
    assert "or publish none (--publish none)" in text
    assert ready.run("--publish", "none", "shell", "exit 7").returncode == 7


def test_a_projects_file_publishes_nothing(ready, server):
    host = free_port()
    (ready.project / ".claude-vm.toml").write_text(f"[[ports]]\nguest = {server.port}\nhost = {host}\n")
    sleeper(ready)
    assert ports(ready) == []
    assert ask(host) == "ConnectionRefusedError"


def test_where_nobody_listens_in_the_guest_a_client_is_reset(ready):
    host, guest = free_port(), free_port()
    sleeper(ready, "--publish", f"{host}:{guest}")
    begun = time.monotonic()
    assert ask(host) == "ConnectionResetError"
    assert time.monotonic() - begun < 10


def test_a_warm_session_publishes_as_any_other(ready, server):
    (ready.home / ".claude-vm.toml").write_text("[pool]\nsize = 1\n")
    assert ready.run("pool", "fill", "1").returncode == 0
    host = free_port()
    sleeper(ready, "--publish", f"{host}:{server.port}")
    (row,) = ready.json("ps")
    assert row["source"] == "warm"
    assert ask(host) == b"HELLO"


def test_ports_follow_the_guest_with_auto(ready, server):
    session = sleeper(ready, "--publish", "auto")
    guest_listens(ready, 22, 80, server.port)
    # The guest's port is taken on this host, by the guest itself: it gets another number.
    wait_until(lambda: ports(ready))
    ((host, guest, auto, problem),) = ports(ready)
    assert (guest, auto, problem) == (server.port, True, "")
    assert host not in {server.port, 22, 80}
    assert ask(host) == b"HELLO"
    assert f"the guest's port {server.port} is at localhost:{host} (its own number is taken" in told(session)
    guest_listens(ready)
    wait_until(lambda: ports(ready) == [])
    assert ask(host) == "ConnectionRefusedError"
    own = free_port()
    guest_listens(ready, own)
    wait_until(lambda: ports(ready) == [(own, own, True, "")])
    assert f"the guest's port {own} is at localhost:{own}\n" in told(session)


def test_quiet_means_no_word_about_ports(ready):
    session = sleeper(ready, "-q", "--publish", "auto")
    own = free_port()
    guest_listens(ready, own)
    wait_until(lambda: ports(ready) == [(own, own, True, "")])
    assert ready.run("stop", "--all").returncode == 0
    session.wait(30)
    assert b"port" not in session.stderr.read()


def test_a_hint_says_once_that_a_guest_listens_where_nobody_can_reach_it(ready):
    tables = "table=${HOME%/home}/root/proc/net; mkdir -p $table; "
    rows = "".join(f"echo 0: 00000000:{port:04X} 00000000:0000 0A; " for port in (22, 80, 3000))
    session = ready.popen("shell", "--", "sh", "-c", f"{tables} {{ {rows}}} >$table/tcp; exec sleep 600")
    assert told(session) == (
        "claude-vm: the guest listens at 3000, and this host can't reach that port;"
        " publish it with --publish 3000, or --publish auto\n"
    )
    guest_listens(ready, 4000)
    assert ports(ready) == []
    assert ready.run("stop", "--all").returncode == 0
    session.wait(30)
    assert b"4000" not in session.stderr.read()


def test_a_thousand_connections_in_a_row_and_the_daemon_keeps_none(ready, server):
    host = free_port()
    sleeper(ready, "--publish", f"{host}:{server.port}")
    pid = ready.daemon_pid()
    ask(host)
    before = psutil.Process(pid).num_fds()
    for number in range(1000):
        with socket.create_connection(("127.0.0.1", host), timeout=20) as client:
            if number % 3 == 0:  # one that leaves before anybody has answered
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                continue
            client.sendall(b"x")
            assert client.recv(10) == b"X"
    wait_until(lambda: psutil.Process(pid).num_fds() <= before + 4)
