"""``-A`` with and without an SSH agent at the client's side. Simulated guests, the real client and daemon."""

import shutil
import socket
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest
from claude_vm_tests_user import User

ECHO = ("shell", 'echo "${SSH_AUTH_SOCK-none}"')


@pytest.fixture
def ready():
    """A user whose project has a template, with paths that are short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="a", dir="/tmp") as folder:
        user = User(Path(folder))
        try:
            assert user.run("setup", "--no-agent").returncode == 0
            yield user
        finally:
            user.close()


def listening(path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    return listener


def make(kind, path):
    match kind:
        case "a dead socket":
            listening(path).close()
        case "a file":
            path.write_text("no socket")
        case "a folder":
            path.mkdir()
        case "nothing":
            pass


@pytest.mark.parametrize("kind", ["a dead socket", "a file", "a folder", "nothing"])
def test_an_agent_that_is_not_there_is_told_at_the_start_and_the_guest_has_none(ready, tmp_path, kind):
    path = tmp_path / "agent"
    make(kind, path)
    done = ready.run("-A", *ECHO, env={"SSH_AUTH_SOCK": str(path)})
    said = f"claude-vm: no SSH agent answers at {path} (SSH_AUTH_SOCK), so -A forwards none\n"
    assert (done.returncode, done.stdout) == (0, b"none\n")
    assert done.stderr.decode().endswith(said)


@pytest.mark.parametrize("value", [None, ""])
def test_without_the_variable_the_guest_has_none_either(ready, value):
    done = ready.run("-A", *ECHO, env={} if value is None else {"SSH_AUTH_SOCK": value})
    assert (done.returncode, done.stdout) == (0, b"none\n")
    assert b"SSH_AUTH_SOCK is not set" in done.stderr


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n", b""])
def test_something_else_than_an_agent_is_told(ready, tmp_path, answer):
    with listening(tmp_path / "s") as listener:

        def serve():
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        done = ready.run("-A", *ECHO, env={"SSH_AUTH_SOCK": str(tmp_path / "s")})
        thread.join()
    assert (done.returncode, done.stdout) == (0, b"none\n")
    assert b"no SSH agent answers" in done.stderr


def test_an_agent_that_is_slow_is_there(ready, tmp_path):
    with listening(tmp_path / "s"):
        done = ready.run("-A", *ECHO, env={"SSH_AUTH_SOCK": str(tmp_path / "s")})
    assert done.stdout.startswith(b"/")
    assert b"agent" not in done.stderr


def test_an_agent_that_dies_during_the_session_refuses_and_kills_nobody(ready, tmp_path):
    if shutil.which("ssh-agent") is None:
        pytest.skip("no ssh-agent on this host (Debian: openssh-client)")
    path = tmp_path / "s"
    with subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.PIPE) as agent:
        assert agent.stdout.readline()
        session = ready.popen(
            "-A", "shell", "--", "sh", "-c",
            f"ssh-add -l; while [ -e {path} ]; do sleep 0.05; done;"
            " for n in 1 2 3 4 5 6 7 8; do ssh-add -l 2>&1; echo $?; done",
            env={"SSH_AUTH_SOCK": str(path)},
        )  # fmt: skip
        said = session.stdout.readline()
        agent.terminate()
        agent.wait()
        assert said == b"The agent has no identities.\n"
        path.unlink(missing_ok=True)
        said = session.communicate(timeout=60)[0].decode().splitlines()
    assert said[1::2] == ["1"] * 8, said
    assert "refused" in said[0]
