import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from claude_vm_tests_reading import until

from claude_vm.supervisor.ssh.errors import LaunchError
from claude_vm.supervisor.ssh.launch import TOTAL_LIMIT, WORD_LIMIT, LaunchMode, launch_file
from claude_vm.supervisor.ssh.process import Pty

pytestmark = pytest.mark.anyio

TERMINAL = Pty("xterm-256color", 33, 99)
LAUNCHER = Path(__file__).parents[2] / "drivers/guest/session"
everywhere = pytest.mark.parametrize("pty", [None, TERMINAL], ids=["pipes", "terminal"])

TELL = (
    "import base64, json, os, sys\n"
    "encode = lambda data: base64.b64encode(os.fsencode(data)).decode()\n"
    "env = {encode(name): encode(value) for name, value in os.environ.items()}\n"
    "print(json.dumps([[encode(word) for word in sys.argv[1:]], env, encode(os.getcwd())]))\n"
)
EVERY_BYTE = os.fsdecode(bytes(range(1, 256)))
HOSTILE = [
    "",
    "-rf",
    "--",
    "a b",
    "'",
    '"',
    "$(touch /tmp/x)",
    "`id`",
    "${HOME}",
    "*",
    "~",
    "\\",
    "a\nb\n",
    "\n",
    "é ü 漢",
    "\x01\x7f\x01",
    "!!",
    "a=b",
    "n" * 255,
    EVERY_BYTE,
    "",
]


async def collect(process):
    out, err = bytearray(), bytearray()
    process.write_eof()
    while data := await process.read_stdout(65536):
        out += data
    while data := await process.read_stderr(65536):
        err += data
    status = await process.wait()
    await process.aclose()
    return status, bytes(out).replace(b"\r\n", b"\n"), bytes(err)


async def told(process):
    status, out, err = await collect(process)
    assert status == 0, (out, err)
    words, env, cwd = json.loads(out)
    decode = lambda text: os.fsdecode(base64.b64decode(text))  # noqa: E731
    return [decode(word) for word in words], {decode(k): decode(v) for k, v in env.items()}, decode(cwd)


@everywhere
async def test_words_reach_the_program_byte_for_byte(session, pty):
    words, _, _ = await told(await session(LaunchMode.EXEC, [sys.executable, "-c", TELL, *HOSTILE], pty=pty))
    assert words == HOSTILE


@everywhere
async def test_environment_reaches_the_program_byte_for_byte(session, pty):
    env = {f"V{number}": word for number, word in enumerate(HOSTILE)}
    env |= {
        "LONG": "x" * 100_000,
        "IFS": " x",
        "LC_ALL": "C",
        "CDPATH": "/tmp",
        "_x": "1",
        "n" * 255: "long name",
    }
    _, seen, _ = await told(await session(LaunchMode.EXEC, [sys.executable, "-c", TELL], env=env, pty=pty))
    assert {name: seen.get(name) for name in env} == env


@everywhere
async def test_many_variables_of_together_more_than_64_kib_arrive(session, pty):
    env = {f"NAME_{number}": "v" * 300 for number in range(1000)}
    _, seen, _ = await told(await session(LaunchMode.EXEC, [sys.executable, "-c", TELL], env=env, pty=pty))
    assert env.items() <= seen.items()


@everywhere
async def test_nothing_of_the_launcher_is_in_the_environment(session, pty):
    _, seen, _ = await told(await session(LaunchMode.EXEC, [sys.executable, "-c", TELL], cwd="/", pty=pty))
    ours = [name for name in seen if "claude_vm" in name.lower() or name == "OLDPWD"]
    assert ours in ([], ["CLAUDE_VM_SIM"])
    assert "SSH_AUTH_SOCK" not in seen


@everywhere
async def test_nothing_of_the_launcher_is_among_an_evaluated_words_names_or_arguments(session, pty):
    process = await session(
        LaunchMode.EVAL,
        ['compgen -v; compgen -A function; printf "<%s>" "$#" "$0" $-; shopt -p execfail'],
        cwd="/",
        pty=pty,
    )
    status, out, _ = await collect(process)
    assert b"claude_vm" not in out.lower().replace(b"claude_vm_sim\n", b"")
    assert b"<0><bash>" in out
    assert status == 1  # shopt tells with its status that the option is off


@everywhere
async def test_hostile_working_directories_are_entered(session, pty, tmp_path):
    for name in ("a b", "-rf", "$(id)", "new\nline\n", "é'\"", os.fsdecode(bytes(range(0x80, 0xA0)))):
        folder = tmp_path / name
        folder.mkdir()
        _, seen, cwd = await told(
            await session(LaunchMode.EXEC, [sys.executable, "-c", TELL], cwd=str(folder), pty=pty)
        )
        assert cwd == str(folder) == seen["PWD"]


@everywhere
async def test_missing_working_directory_is_an_error_of_ours(session, pty, tmp_path):
    process = await session(LaunchMode.EXEC, ["true"], cwd=str(tmp_path / "gone\n"), pty=pty)
    status, out, err = await collect(process)
    said, other = (err, out) if pty is None else (out, err)
    assert (status, other) == (125, b"")
    assert said.count(b"\n") == 1
    assert b"working directory is not there" in said
    assert b"gone" in said


@everywhere
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["no-such-program-here"], 127),
        ([""], 127),
        (["/etc/passwd"], 126),
        (["/"], 126),
        (["sh", "-c", "exit 37"], 37),
    ],
)
async def test_exit_status_is_the_programs_or_the_shells(session, pty, words, expected):
    status, out, _ = await collect(await session(LaunchMode.EXEC, words, pty=pty))
    assert status == expected
    assert pty is not None or out == b""


@everywhere
@pytest.mark.parametrize(("name", "expected"), [("TERM", 143), ("KILL", 137), ("INT", 130), ("SEGV", 139)])
async def test_death_by_signal_is_told(session, pty, name, expected):
    process = await session(LaunchMode.EXEC, ["sh", "-c", f"ulimit -c 0; kill -s {name} $$"], pty=pty)
    status, _, _ = await collect(process)
    assert status == expected


@everywhere
async def test_a_word_is_evaluated_by_a_shell_that_has_read_the_profile(session, home, pty):
    (home / ".profile").write_text("export FROM_PROFILE=read\n")
    status, out, _ = await collect(
        await session(LaunchMode.EVAL, ["f() { echo $((6*7)); }; f | cat; exit 9"], pty=pty)
    )
    assert (status, out) == (9, b"42\n")
    status, out, _ = await collect(
        await session(LaunchMode.EVAL, ["echo $FROM_PROFILE; shopt -q login_shell"], pty=pty)
    )
    # It is no login shell to itself, which would read ~/.bash_logout at its end.
    assert (status, out.split()) == (1, [b"read"])


@everywhere
async def test_a_syntax_error_in_an_evaluated_word_is_a_failure(session, pty):
    status, out, err = await collect(await session(LaunchMode.EVAL, ["echo 'unfinished"], pty=pty))
    said, other = (err, out) if pty is None else (out, err)
    assert other == b""
    assert status != 0
    assert b"unexpected EOF" in said


async def test_the_profile_neither_reads_the_input_nor_writes_the_output(session, home):
    (home / ".bash_profile").write_text(
        'echo loud; read -r line; echo "profile: <$line>"; export A=profile B=profile\n'
    )
    process = await session(LaunchMode.EXEC, ["sh", "-c", "echo $A $B; cat"], env={"A": "session"})
    await process.write(b"input\n")
    status, out, err = await collect(process)
    assert (status, out) == (0, b"session profile\ninput\n")
    assert err == b"loud\nprofile: <>\n"


@everywhere
async def test_descriptors_beyond_the_three_are_closed(session, pty):
    listing = "import os; print([n for n in range(3, 200) if os.path.exists(f'/proc/self/fd/{n}')])"
    status, out, _ = await collect(await session(LaunchMode.EXEC, [sys.executable, "-c", listing], pty=pty))
    assert (status, out) == (0, b"[]\n")


async def test_a_session_without_words_is_an_interactive_shell(session):
    process = await session(LaunchMode.SHELL, pty=TERMINAL, env={"PS1": "never seen"}, cwd="/")
    await process.write(b"case $- in *i*) echo inter''active; esac; pwd; exit 5\n")
    status, out, _ = await collect(process)
    assert status == 5
    assert b"interactive\n/\n" in out


async def test_without_a_terminal_a_session_without_words_runs_what_it_reads(session):
    process = await session(LaunchMode.SHELL, cwd="/")
    await process.write(b"case $- in *i*) echo interactive; esac; pwd; exit 5\n")
    assert await collect(process) == (5, b"/\n", b"")


@everywhere
async def test_secrets_are_gone_when_the_program_runs(session, pty, server):
    words = ["sh", "-c", "echo started; read x"]
    process = await session(LaunchMode.EXEC, words, env={"TOKEN": "s3cret-canary"}, pty=pty)
    assert (await process.read_stdout(100)).rstrip() == b"started"
    files = [path for path in server.run.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"launch"}
    assert not any(b"canary" in path.read_bytes() for path in files)
    await process.write(b"\n")
    assert (await collect(process))[0] == 0


async def test_a_session_runs_once(session, server):
    first = await session(LaunchMode.EXEC, ["true"])
    assert (await collect(first))[0] == 0
    again = await anyio.run_process(
        [LAUNCHER, "0000000001"], check=False, env={"CLAUDE_VM_RUN": str(server.run)}
    )
    assert (again.returncode, again.stdout) == (125, b"")
    assert b"nothing to run" in again.stderr


@pytest.mark.parametrize("word", ["", "..", "a/b", "-x", "a b", "ä"])
def test_the_launcher_refuses_what_is_no_id(word, tmp_path):
    done = subprocess.run(
        [LAUNCHER, word], capture_output=True, check=False, env={"CLAUDE_VM_RUN": str(tmp_path)}
    )
    assert done.returncode == 125
    assert b"session's id" in done.stderr


def test_the_launcher_names_the_folder_that_is_missing(tmp_path):
    done = subprocess.run(
        [LAUNCHER, "abc"], capture_output=True, check=False, env={"CLAUDE_VM_RUN": str(tmp_path)}
    )
    assert done.returncode == 125
    assert str(tmp_path).encode() in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        {"mode": LaunchMode.EXEC},
        {"mode": LaunchMode.EVAL},
        {"mode": LaunchMode.EVAL, "argv": ["a", "b"]},
        {"mode": LaunchMode.EXEC, "argv": ["a\0b"]},
        {"mode": LaunchMode.SHELL, "env": {"a\0": "x"}},
        {"mode": LaunchMode.SHELL, "env": {"a.b": "x"}},
        {"mode": LaunchMode.SHELL, "env": {"": "x"}},
        {"mode": LaunchMode.SHELL, "env": {"A\n": "x"}},
        {"mode": LaunchMode.SHELL, "env": {"UID": "0"}},
        {"mode": LaunchMode.EXEC, "argv": ["true"], "env": {"__claude_vm_argv": "id"}},
        {"mode": LaunchMode.SHELL, "env": {"A": "x\0B=y"}},
        {"mode": LaunchMode.SHELL, "cwd": "relative"},
        {"mode": LaunchMode.SHELL, "cwd": "/a\0b"},
    ],
)
def test_what_cannot_be_launched_is_refused_here(arguments):
    with pytest.raises(LaunchError):
        launch_file("abc", **arguments)


@pytest.mark.parametrize("session_id", ["", "../x", "a b", "x;id", "a\n", "-a", "é", "a" * 65])
def test_no_session_id_can_reach_a_shell_as_anything_else(session_id):
    with pytest.raises(LaunchError):
        launch_file(session_id, mode=LaunchMode.SHELL)


def test_only_the_user_can_read_what_a_session_runs():
    file = launch_file("abc", mode=LaunchMode.SHELL)
    assert (file.path, file.mode) == ("/run/claude-vm/sessions/abc/launch", 0o600)


@pytest.mark.parametrize("size", [WORD_LIMIT - 1, WORD_LIMIT])
@pytest.mark.parametrize("kind", ["variable", "word"])
def test_one_word_has_the_kernels_limit(kind, size):
    text = "x" * size
    if kind == "word":
        given = {"argv": ["true", text]}
    else:
        given = {"argv": ["true"], "env": {"LARGE": text.removeprefix("x" * len("LARGE="))}}
    named = "the word 2" if kind == "word" else "the environment variable LARGE"
    if size < WORD_LIMIT:
        assert launch_file("abc", mode=LaunchMode.EXEC, **given).data
        # This kernel says the same, wherever the tests run.
        done = subprocess.run(["env", *given["argv"]], env=os.environ | given.get("env", {}), check=False)
        assert done.returncode == 0
    else:
        with pytest.raises(
            LaunchError, match=rf"{named} has {size} bytes; .* at most {WORD_LIMIT - 1} in one"
        ):
            launch_file("abc", mode=LaunchMode.EXEC, **given)


@pytest.mark.parametrize("each", [0, 100_000])
def test_all_together_have_a_limit_and_the_largest_is_named(each):
    count = TOTAL_LIMIT // (each + len("V000000=") + 1 + 8)
    env = {f"V{number:06}": "x" * each for number in range(count)}
    launch_file("abc", mode=LaunchMode.SHELL, env=env)
    env["V000007"] = "x" * (each + 200)
    env |= {f"W{number:06}": "x" * each for number in range(2)}
    with pytest.raises(
        LaunchError, match=r"together; .* the largest is the environment variable V000007 with"
    ):
        launch_file("abc", mode=LaunchMode.SHELL, env=env)


@everywhere
@pytest.mark.parametrize(
    "line",
    ["echo said", "echo said; exit 0", "echo said; logout 2>/dev/null; true", "(exit 0); echo said; exit"],
)
async def test_a_bash_logout_writes_nothing_into_what_a_session_says(session, home, pty, line):
    (home / ".bash_logout").write_text("echo LOGOUT; echo LOGOUT >&2\n")
    status, out, err = await collect(await session(LaunchMode.EVAL, [line], pty=pty))
    assert (status, out.split(), err) == (0, [b"said"], b"")


@everywhere
@pytest.mark.parametrize("end", [b"exit\n", b"\x04", b"logout; exit\n"])
async def test_a_shell_that_ends_says_nothing_of_a_bash_logout(session, home, pty, end):
    (home / ".bash_logout").write_text("echo LOG''OUT; echo LOG''OUT >&2\n")
    process = await session(LaunchMode.SHELL, pty=pty, env={"PS1": "ready> "})
    if pty is not None:
        await until(process, b"ready> ")
    if pty is None and end == b"\x04":
        process.write_eof()
    else:
        await process.write(end)
    with anyio.fail_after(20):
        assert await process.wait() in {0, 1}
    out = bytearray()
    while data := await process.read_stdout(65536):
        out += data
    while data := await process.read_stderr(65536):
        out += data
    assert b"LOGOUT" not in out
    await process.aclose()
