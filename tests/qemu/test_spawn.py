import fcntl
import os
import signal
import socket
import sys

import pytest

from claude_vm.drivers.errors import DriverError, ToolMissingError
from claude_vm.drivers.vm.spawn import end, listen, reap, spawn, tail

pytestmark = pytest.mark.anyio

TELL = """
import os, socket, sys
server = socket.socket(fileno=int(sys.argv[1]))
connection, _ = server.accept()
files = sorted(os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if int(name) < 3)
secret = "SECRET" in os.environ
connection.sendall(f"{os.getpid() == os.getsid(0)} {secret} {' '.join(files)}".encode())
print("last words", flush=True)
connection.close()
signal = __import__("signal").pause()
"""


NAMES = """
import signal, socket, sys
taken = [socket.socket(fileno=int(word)) for word in sys.argv[1:]]
print(*(one.getsockname() for one in taken), flush=True)
taken[0].accept()
signal.pause()
"""


async def names_told(process, path):
    """Wait until the program has told the names of its sockets, and end it."""
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            assert client.recv(1) == b""
    finally:
        await end(process)


async def test_a_spawned_program_has_its_own_session_and_nothing_of_ours(short, monkeypatch):
    monkeypatch.setenv("SECRET", "s3cret")
    log, path = short / "log", short / "s"
    with listen(path) as server:
        process = spawn([sys.executable, "-c", TELL, "10"], log, [(server.fileno(), 10)])
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            said = b"".join(iter(lambda: client.recv(4096), b"")).decode()
        assert said == f"True False /dev/null {log} {log}"
        assert path.stat().st_mode & 0o777 == 0o600
    finally:
        await end(process)
    assert not process.is_alive()
    assert reap(process.pid) is None
    assert "last words" in tail(log)


async def test_a_descriptor_survives_being_moved_onto_another_ones_number(short):
    """The two sockets' numbers may be each other's targets."""
    with listen(short / "a") as one, listen(short / "b") as two:
        log = short / "log"
        targets = [(one.fileno(), two.fileno()), (two.fileno(), one.fileno())]
        process = spawn([sys.executable, "-c", NAMES, str(two.fileno()), str(one.fileno())], log, targets)
        await names_told(process, short / "a")
    assert tail(log) == f"{short / 'a'} {short / 'b'}"


async def test_a_program_that_is_not_there_is_a_missing_tool(short):
    with pytest.raises(ToolMissingError):
        spawn([str(short / "nothing")], short / "log", [])


async def test_ending_what_has_ended_is_fine(short):
    process = spawn([sys.executable, "-c", "import signal; signal.pause()"], short / "log", [])
    process.kill(signal.SIGKILL)
    await process.wait()

    await end(process)
    await end(process)


def test_a_path_too_long_for_a_socket_is_our_error(tmp_path):
    with pytest.raises(DriverError, match="can't listen"):
        listen(tmp_path / ("n" * 120))


def test_a_stale_socket_is_replaced(short):
    listen(short / "s").close()

    with listen(short / "s"), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(short / "s"))


def test_a_logs_tail_is_bounded_and_printable(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"\x1b[31m" + b"x" * 9000 + b"\r\nline\x07 \xff\n")

    assert tail(log).endswith("line? \ufffd")
    assert len(tail(log)) <= 4000
    assert tail(tmp_path / "nothing") == ""


async def test_descriptors_beyond_the_numbers_in_use_do_not_overwrite_each_other(short):
    """A daemon with many files open has numbers like those that descriptors are moved to on their way."""
    with listen(short / "a") as one, listen(short / "b") as two:
        high = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 109), fcntl.fcntl(two, fcntl.F_DUPFD_CLOEXEC, 110)]
        log = short / "log"
        try:
            process = spawn([sys.executable, "-c", NAMES, "10", "11"], log, [(high[0], 10), (high[1], 11)])
        finally:
            for number in high:
                os.close(number)
        await names_told(process, short / "a")
    assert tail(log) == f"{short / 'a'} {short / 'b'}"
