"""Whatever a client sends, others don't wait for it: no turn of the daemon's loop takes long."""

import contextlib
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from claude_vm_tests_user import User, sleeper, wait_until

from claude_vm.supervisor.grammar.words import MOST_FLAGS, MOST_OPERANDS
from claude_vm.supervisor.wire.framing import encode, encode_json, encode_numbers, encode_size
from claude_vm.supervisor.wire.messages import (
    MAX_INVOKE,
    MAX_RAW,
    MAX_STRINGS,
    MAX_WORDS,
    PROTOCOL,
    FrameType,
)
from claude_vm.supervisor.wire.paths import socket_path
from claude_vm.supervisor.wire.version import VERSION

pytestmark = [pytest.mark.timed, pytest.mark.timeout(180)]

LONGEST_S = 0.05
WORD = "y" * 130_000
"""About the longest word that Linux passes to a program."""


class Watched(User):
    """A user whose daemon tells how long its turns take."""

    def __init__(self, root):
        super().__init__(root)
        del self.env["CLAUDE_VM_VALIDATE"]  # what is timed is the daemon as users have it
        self.turns = root / "turns"
        self.daemon = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("watched_daemon.py"), self.turns],
            env=self.env,
            stdout=subprocess.PIPE,
        )
        assert self.daemon.stdout.readline() == b"ready\n"
        for words in (
            ["setup", "--no-agent"],
            ["shell", "true"],
            ["info"],
            ["ps"],
        ):  # loads what is loaded late
            assert self.run(*words).returncode == 0
        self.since = time.monotonic()

    def longest_turn(self):
        """Return the longest turn since the last call, in seconds."""
        assert self.run("version").returncode == 0  # so a long turn before it has been noted
        rows = [line.split() for line in self.turns.read_text().splitlines()]
        since, self.since = self.since, time.monotonic()
        return max((float(took) for at, took in rows if float(at) >= since), default=0.0)

    def connect(self):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(socket_path(str(self.data)))
        return connection

    def close(self):
        super().close()
        self.daemon.wait(30)
        self.daemon.stdout.close()


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    made = Watched(tmp_path_factory.mktemp("watched"))
    yield made
    made.close()


def many(flag, count=MOST_FLAGS // 2 - 1, value="A=1"):
    return [flag, value] * count


def test_the_watch_sees_a_long_turn(watched):
    """What would be too long is seen: the reading of a large file, when it is not in a thread."""
    code = "import time; t = time.thread_time()\nwhile time.thread_time() - t < 0.2: pass"
    program = (
        "import anyio, sys, time\nsys.path.insert(0, sys.argv[1])\nimport watched_daemon as w\n"
        "async def main():\n async with anyio.create_task_group() as tasks:\n"
        "  tasks.start_soon(w.watch, sys.stdout)\n  await anyio.sleep(0.01)\n"
        f"  exec({code!r})\n  await anyio.sleep(0.01)\n  tasks.cancel_scope.cancel()\nanyio.run(main)"
    )
    folder = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", program, folder], capture_output=True, check=True, timeout=60
    )
    assert max(float(line.split()[1]) for line in done.stdout.splitlines()) >= 0.2


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["ps", *["y"] * (MAX_WORDS - 1)], 2),
        (["ps", *["y"] * MAX_WORDS], 2),
        (["ps", *["y"] * MOST_OPERANDS], 2),
        (["stop", *["y"] * MOST_OPERANDS], 1),
        (["stop", *["-q"] * (MAX_WORDS - 1)], 2),
        (["shell", "true", *["y" * 50] * (MAX_WORDS - 2)], 0),
        (["-p", *["y"] * (MAX_WORDS - 1)], 125),
        ([*many("--env", MAX_WORDS // 2 - 2), "shell", "true"], 2),
        ([*many("--env"), "shell", "true"], 0),
        ([*many("--env", 20, f"A={'x' * 90_000}"), "shell", "true"], 0),
        ([*many("--inherit-env", value="A"), "shell", "true"], 0),
        ([*many("--mount", value="/usr"), "shell", "true"], 125),
        ([*many("--mount", value="/tmp:/x"), "shell", "true"], 125),
        ([*many("--publish", value="1:1"), "shell", "true"], 125),
        ([*many("--env-file", value="none"), "shell", "true"], 125),
        ([WORD], 125),
        (["shell", f"true {WORD}"], 0),
        (["shell", f"true {'a ' * 60_000}"], 0),
        (["shell", f"-{WORD}"], 2),
        (["ps", WORD], 2),
        (["ps", f"--{WORD}"], 2),
        (["stop", WORD], 1),
        (["--mount", f"/{WORD}", "shell", "true"], 125),
        (["--mount", "\\:" * 60_000, "shell", "true"], 125),
        (["--env-file", WORD, "shell", "true"], 125),
        (["--publish", "9" * 130_000, "shell", "true"], 125),
        (["--memory", "9" * 130_000, "info"], 1),
        (["--driver", WORD, "info"], 1),
        (["completion", "bash", *["y"] * 1001], 2),
    ],
    ids=lambda value: f"{len(value)} words of {value[0][:9]}" if isinstance(value, list) else None,
)
def test_a_command_line_of_many_or_long_words_keeps_nobody_waiting(watched, words, status):
    done = watched.run(*words)
    assert done.returncode == status, done.stderr[-500:]
    assert watched.longest_turn() < LONGEST_S


def test_more_words_than_a_command_line_may_have_are_refused_with_the_limit(watched):
    done = watched.run("ps", *["y"] * 100_000)
    assert done.returncode == 2
    assert done.stderr.startswith(
        b"claude-vm: 100001 words are too many: a command line may have 10000 [usage]\n"
    )


@pytest.mark.parametrize("variables", [{f"V{n}": "x" * 100 for n in range(4500)}, {"A": WORD, "B": WORD}])
def test_a_large_environment_keeps_nobody_waiting(watched, variables):
    assert watched.run("shell", "true", env=variables).returncode == 0
    assert watched.longest_turn() < LONGEST_S


@pytest.mark.parametrize(
    "content",
    [
        "x = [" + "1," * 30_000 + "]\n",
        "a." * 2000 + "b = 1\n",
        "x = 1\n" * 9000,
        "#\n" * 600_000,
        "\n" * 60_000,
    ],
    ids=["list", "deep", "repeated", "too large", "empty"],
)
def test_a_large_configuration_keeps_nobody_waiting(watched, content):
    other = watched.project.parent / "other"
    other.mkdir(exist_ok=True)
    (other / ".claude-vm.toml").write_text(content)
    watched.run("info", env={"HOME": str(other), "CLAUDE_VM_HOME": str(watched.data)})
    assert watched.longest_turn() < LONGEST_S


@pytest.mark.parametrize(
    "content",
    [
        "".join(f"V{n}=x\n" for n in range(9_000)),
        "".join(f"V{n}=x\n" for n in range(60_000)),
        "bad\n" * 200_000,
    ],
)
def test_a_large_file_of_variables_keeps_nobody_waiting(watched, content):
    (watched.project / "variables").write_text(content)
    watched.run("--env-file", "variables", "shell", "true")
    assert watched.longest_turn() < LONGEST_S


HELLO = encode_json(FrameType.HELLO, {"protocol": PROTOCOL, "version": VERSION, "pid": 1})
OLD = encode_json(FrameType.HELLO, {"protocol": PROTOCOL, "version": "0.0.0", "pid": 1})
BEFORE = b'{"cwd":"/","env":{},"argv":['

INVOCATIONS = {
    "words": BEFORE + b'"y",' * (MAX_INVOKE // 4 - 20) + b'"y"]}',
    "as many strings as may be": BEFORE + b'"y",' * (MAX_STRINGS - 9) + b'"y"]}',
    "backslashes": BEFORE + rb'"\\",' * (2 * MAX_STRINGS - 40) + b'"y"]}',
    "numbers": BEFORE + b"1," * (MAX_INVOKE // 2 - 30) + b"1]}",
    "numbers in a field": b'{"x":[' + b"1," * (MAX_INVOKE // 2 - 30) + b'1],"argv":[]}',
    "lists": b'{"x":[' + b"[]," * (MAX_INVOKE // 3 - 30) + b'1],"argv":[]}',
    "objects": b'{"x":[' + b"{}," * (MAX_INVOKE // 3 - 30) + b'1],"argv":[]}',
    "depth": b'{"argv":' + b"[" * (MAX_INVOKE - 20),
    "variables": b'{"cwd":"/","argv":[],"env":{' + b'"":"",' * (MAX_STRINGS // 2 - 9) + b'"a":""}}',
    "blanks": b"{" + b" " * (MAX_INVOKE - 20) + b"}",
    "one long word": BEFORE + b'"' + b"y" * (MAX_INVOKE - 90) + b'"]}',
    "line ends": BEFORE + b'"' + rb"\n" * (MAX_INVOKE // 2 - 90) + b'"]}',
    "umlauts": BEFORE + b'"' + "ü".encode() * (MAX_INVOKE // 2 - 90) + b'"]}',
    "no text": BEFORE + b'"' + b"\xff" * (MAX_INVOKE - 90) + b'"]}',
    "no text, shorter": BEFORE + b'"' + b"\xff" * (MAX_RAW - 90) + b'"]}',
    "numbers in no text": b'{"cwd":"/\xff","env":{},"argv":[' + b"1," * (MAX_RAW // 2 - 90) + b"1]}",
    "lists in no text": b'{"cwd":"/\xff","x":[' + b"[]," * (MAX_RAW // 3 - 90) + b"1]}",
    "terminfo": BEFORE + b'],"terminfo":"' + b"AAAA" * (MAX_INVOKE // 4 - 90) + b'"}',
}


def begin(watched, hello, invocation):
    with watched.connect() as connection, contextlib.suppress(ConnectionError):
        connection.sendall(hello + encode(FrameType.INVOKE, invocation))
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass


@pytest.mark.parametrize("name", INVOCATIONS)
def test_no_bytes_of_an_invocation_keep_others_waiting(watched, name):
    begin(watched, HELLO, INVOCATIONS[name])
    assert watched.longest_turn() < LONGEST_S


def test_no_invocation_of_another_version_keeps_others_waiting(watched):
    session = sleeper(watched)  # or the daemon would make room for that version
    for name, invocation in INVOCATIONS.items():
        begin(watched, OLD, invocation)
        assert watched.longest_turn() < LONGEST_S, name
    session.terminate()
    session.communicate()


@pytest.mark.parametrize(
    "frame",
    [
        encode(FrameType.STDIN, b"y"),
        encode(FrameType.SIGNAL, b"CONT"),
        encode_size(3, 4),
        encode_numbers(FrameType.STDOUT_ACK, 0),
        encode_numbers(FrameType.AGENT_CLOSE, 1),
        encode(FrameType.STDERR_CLOSED),
        encode(FrameType.STDIN_EOF),
    ],
    ids=["input", "signal", "size", "acknowledgement", "agent", "closed", "end"],
)
def test_no_flood_of_small_frames_keeps_others_waiting(watched, frame):
    message = {
        "argv": ["shell", "--", "sh", "-c", "echo up; exec sleep 600"],
        "cwd": str(watched.project),
        "env": watched.env,
    }
    with watched.connect() as connection:
        connection.sendall(HELLO + encode_json(FrameType.INVOKE, message))
        seen = b""
        while b"up\n" not in seen:
            seen += connection.recv(65536)
        with contextlib.suppress(ConnectionError):
            connection.sendall(frame * 100_000)
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while connection.recv(65536):
                pass
    assert watched.longest_turn() < LONGEST_S
    wait_until(lambda: not watched.json("ps"))
