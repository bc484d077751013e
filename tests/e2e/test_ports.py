"""Published ports of real VMs: what the host reaches of a guest, and what it must not."""

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess

import psutil
import pytest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

LARGE = 10 * 1024 * 1024

# Answers "sum" with the digest of all that follows, "send N" with N bytes, and anything else in capitals.
SERVER = """
import hashlib, os, socket, sys, threading
def serve(stream):
    with stream, stream.makefile("rb") as lines:
        word = lines.readline().split()
        if word == [b"quit"]:
            os._exit(0)
        if word[:1] == [b"sum"]:
            digest = hashlib.sha256()
            while data := lines.read1(65536):
                digest.update(data)
            stream.sendall(digest.hexdigest().encode())
        elif word[:1] == [b"send"]:
            piece = bytes(range(256)) * 256
            for _ in range(int(word[1]) // len(piece)):
                stream.sendall(piece)
        else:
            stream.sendall(b" ".join(word).upper())
def accept(listener):
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],)).start()
for place in sys.argv[1:]:
    address, _, port = place.rpartition("@")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, int(port)), family=family)
    threading.Thread(target=accept, args=(listener,)).start()
print("up", flush=True)
"""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


def session(claude_vm, *words, flags=()):
    started = claude_vm.popen(
        *flags,
        "shell",
        "--",
        *words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    assert started.stdout.readline() == b"up\n", started.stderr.read()
    return started


def serving(claude_vm, *places, flags=(), root=False):
    words = ["sudo"] if root else []
    return session(claude_vm, *words, "python3", "-c", SERVER, *places, flags=flags)


def ended(started, port):
    """Let the server behind a port end, and its session with it; return what the session said."""
    ask(port, b"quit\n")
    assert started.wait(60) == 0
    return started.stderr.read().decode()


def stopped(started, claude_vm):
    """End a session from outside and return what it said."""
    assert claude_vm.run("stop", "--all").returncode == 0
    started.wait(60)
    return started.stderr.read().decode()


def ask(port, text=b"hello\n", address="127.0.0.1"):
    """Return all that comes at a port of this host after a text and its end, or the error's name."""
    try:
        with socket.create_connection((address, port), timeout=60) as client:
            client.sendall(text)
            client.shutdown(socket.SHUT_WR)
            with client.makefile("rb") as answer:
                return answer.read()
    except OSError as error:
        return type(error).__name__


def listening(claude_vm):
    """Return where the daemon and its VMs listen for TCP."""
    found = set()
    for pid in (claude_vm.daemon_pid(), *claude_vm.vm_pids()):
        for connection in psutil.Process(pid).net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                found.add(tuple(connection.laddr))
    return found


def ports(claude_vm):
    (row,) = json.loads(claude_vm.run("ps", "--json").stdout)
    return [(p["host"], p["guest"], p["auto"], p["problem"]) for p in row["ports"]]


def test_the_host_reaches_a_published_port_and_only_as_long_as_the_session_lasts(claude_vm):
    host, low = free_port(), free_port()
    started = serving(
        claude_vm,
        "@8000",
        "@80",
        flags=("--publish", f"{host}:8000", "--publish", f"{low}:80"),
        root=True,
    )
    assert ask(host) == b"HELLO"
    assert ask(low) == b"HELLO"
    addresses = {address for address, port in listening(claude_vm) if port in {host, low}}
    assert addresses <= {"127.0.0.1", "::1"}
    if "::1" in addresses:
        assert ask(host, address="::1") == b"HELLO"
    ended(started, host)
    assert ask(host) == ask(low) == "ConnectionRefusedError"


def test_what_a_guest_listens_at_is_not_on_the_host_unless_published(claude_vm):
    started = serving(claude_vm, "0.0.0.0@8000", "127.0.0.1@8001")
    assert ask(8000) == ask(8001) == "ConnectionRefusedError"
    new = listening(claude_vm)
    # The VM's SSH, on the loopback and under a port of our choice; anything else would be the guest's doing.
    assert {address for address, _ in new} == {"127.0.0.1"}
    assert len(new) == 1
    assert not {port for _, port in new} & {22, 80, 8000, 8001}
    assert ports(claude_vm) == []
    said = started.stderr.readline().decode()
    assert said.startswith("claude-vm: the guest listens at 8000, and this host can't reach that port")
    assert "--publish 8000" in said
    assert "listens" not in stopped(started, claude_vm)


def test_a_server_on_the_guests_own_loopback_is_reached_on_both_addresses(claude_vm):
    first, second = free_port(), free_port()
    flags = ("--publish", f"{first}:8000", "--publish", f"{second}:8001")
    started = serving(claude_vm, "127.0.0.1@8000", "::1@8001", flags=flags)
    assert ask(first) == ask(second) == b"HELLO"
    ended(started, first)


def test_ten_megabytes_pass_each_way_as_they_are(claude_vm):
    host = free_port()
    started = serving(claude_vm, "@8000", flags=("--publish", f"{host}:8000"))
    piece = bytes(range(256)) * 256
    data = piece * (LARGE // len(piece))
    digest = hashlib.sha256(data).hexdigest().encode()
    assert ask(host, b"sum\n" + data) == digest
    assert hashlib.sha256(ask(host, b"send %d\n" % LARGE)).hexdigest().encode() == digest
    ended(started, host)


CONNECT = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60) as client:
        client.sendall(b"guest\\n")
        print(client.recv(100).decode())
except OSError as error:
    print(type(error).__name__)
"""


def test_the_guest_of_another_session_does_not_reach_a_published_port(claude_vm):
    host = free_port()
    started = serving(claude_vm, "@8000", flags=("--publish", f"{host}:8000"))
    address = {"qemu": "10.0.2.2", "lima": "192.168.5.2"}[claude_vm.driver]
    said = claude_vm.shell("python3", "-c", CONNECT, address, str(host)).stdout
    assert said in {b"ConnectionResetError\n", b"\n"}  # QEMU may tell its guest a reset as an end
    assert ask(host) == b"HELLO"
    with socket.create_server(("127.0.0.1", 0)) as own:  # what is no port of ours is reached as ever
        port = str(own.getsockname()[1])
        other = claude_vm.popen(
            "shell", "--", "python3", "-c", CONNECT, address, port, stdout=subprocess.PIPE
        )
        with own.accept()[0] as client:
            client.sendall(b"the host's own")
        assert other.communicate(timeout=60)[0] == b"the host's own\n"
    ended(started, host)


def test_where_nobody_listens_in_the_guest_the_client_is_reset(claude_vm):
    host = free_port()
    started = session(claude_vm, "sh", "-c", "echo up; exec sleep 600", flags=("--publish", f"{host}:8000"))
    assert ask(host) == "ConnectionResetError"
    stopped(started, claude_vm)


def test_a_port_that_is_taken_is_told_and_no_vm_is_made(claude_vm):
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        port = somebody.getsockname()[1]
        done = claude_vm.run("--publish", str(port), "shell", "echo ran")
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"[port-taken]" in done.stderr
    assert claude_vm.vm_pids() == []


def test_ports_follow_the_guest_and_a_taken_one_gets_another_number(claude_vm, waiting):
    with contextlib.ExitStack() as stack:
        somebody = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        taken, free = somebody.getsockname()[1], free_port()
        program = f"{SERVER}\nsys.stdin.readline()\nimport os\nos._exit(0)\n"
        loop = f"while :; do python3 -c '{program}' @{taken} @{free} @80 2>/dev/null; sleep 1000; done"
        started = claude_vm.popen(
            *("--publish", "auto", "shell", "--", "sudo", "sh", "-c", loop),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert started.stdout.readline() == b"up\n"
        waiting(lambda: len(ports(claude_vm)) == 2)
        found = {guest: host for host, guest, auto, _ in ports(claude_vm) if auto}
        assert found[free] == free
        assert found[taken] not in {taken, free}
        assert found[taken] >= 1024
        assert 80 not in found
        assert ask(free) == ask(found[taken]) == b"HELLO"
        said = {started.stderr.readline().decode() for _ in found}
        assert f"claude-vm: the guest's port {free} is at localhost:{free}\n" in said
        assert any(f"{taken} is at localhost:{found[taken]} (its own number is taken" in s for s in said)
        started.stdin.write(b"stop\n")
        started.stdin.flush()
        waiting(lambda: ports(claude_vm) == [])
        assert ask(free) == "ConnectionRefusedError"
        stopped(started, claude_vm)


def test_a_published_port_works_without_a_daemon(claude_vm):
    host = free_port()
    started = serving(claude_vm, "@8000", flags=("--no-daemon", "--publish", f"{host}:8000"))
    assert ask(host) == b"HELLO"
    ended(started, host)
    assert ask(host) == "ConnectionRefusedError"


def test_the_ports_of_a_session_come_back_after_the_daemons_death(claude_vm, waiting):
    hosts = [free_port(), free_port()]
    flags = ("--publish", f"{hosts[0]}:8000", "--publish", f"{hosts[1]}:8001")
    started = serving(claude_vm, "@8000", "@8001", flags=flags)
    os.kill(claude_vm.daemon_pid(), signal.SIGKILL)
    started.wait(30)
    assert ask(hosts[0]) == "ConnectionRefusedError"
    with socket.create_server(("127.0.0.1", hosts[1])):  # somebody takes it meanwhile
        (row,) = json.loads(claude_vm.run("ps", "--json").stdout)
        assert row["attached"] is False
        waiting(lambda: ask(hosts[0]) == b"HELLO")
        problems = {host: problem for host, _, _, problem in ports(claude_vm)}
        assert problems[hosts[0]] == ""
        assert "in use" in problems[hosts[1]]
    assert claude_vm.run("stop", row["session"]).returncode == 0
    waiting(lambda: ask(hosts[0]) == "ConnectionRefusedError")
