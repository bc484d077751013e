"""The socket from which a QEMU that somebody else starts gets what it needs."""

import json
import os
import socket
import subprocess
import sys

import pytest

from claude_vm.drivers.vm import confine
from claude_vm.drivers.vm.spawn import listen

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="descriptors are handed over on Linux only")

TELL = """
import json, os, sys
held = {}
for name in os.listdir("/proc/self/fd"):
    try:
        held[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    except OSError:
        pass
print(json.dumps([sys.argv[1:], held, dict(os.environ), os.getcwd(), os.umask(0)]))
"""


def begin(path, *words):
    argv = [sys.executable, "-I", "-S", confine.__file__, f"handover={path}", sys.executable, *words]
    return subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={"PATH": "/bin", "LIMA_HOME": "/h"}
    )


def test_descriptors_get_their_numbers_and_our_arguments_come_first(short):
    folders = [short / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    # Numbers that the descriptors may have on the way as well.
    order = {"numbers": [4, 3], "arguments": ["-c", TELL, "ours, {{ 1 }}", "x" * 100_000]}
    with listen(short / "d") as listener:
        started = begin(short / "d", "limas")
        connection, _ = listener.accept()
        held = [os.open(folder, os.O_PATH) for folder in folders]
        with connection:
            socket.send_fds(connection, [json.dumps(order).encode()[:10]], held)
            connection.sendall(json.dumps(order).encode()[10:])
        for descriptor in held:
            os.close(descriptor)
        out, err = started.communicate(timeout=30)
    assert started.returncode == 0, err
    argv, found, environ, cwd, umask = json.loads(out)
    assert argv == ["ours, {{ 1 }}", "x" * 100_000, "limas"]
    folders_held = {int(number): path for number, path in found.items() if path.startswith(str(short))}
    assert folders_held == {4: str(folders[0]), 3: str(folders[1])}
    assert environ == {"PATH": "/bin", "LANG": "C", "HOME": "/"} | {
        name: value for name, value in environ.items() if name == "LC_CTYPE"
    }
    assert (cwd, umask) == ("/", 0o077)


def test_a_listener_that_nobody_opens_is_the_end(short):
    started = begin(short / "nothing")
    started.communicate(timeout=30)
    assert started.returncode == 1


def test_a_listener_that_is_closed_without_a_word_is_the_end(short):
    with listen(short / "d") as listener:
        started = begin(short / "d")
        listener.accept()[0].close()
        started.communicate(timeout=30)
    assert started.returncode == 1
