import base64
import json
import os
import subprocess
import sys

import pytest

from claude_vm.supervisor.ssh.errors import LaunchError
from claude_vm.supervisor.ssh.launch import Mode, group_file, launch_command, launch_files
from claude_vm.supervisor.ssh.process import Pty

pytestmark = pytest.mark.anyio

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
    return await process.wait(), bytes(out), bytes(err)


async def told(process):
    status, out, err = await collect(process)
    assert status == 0, err
    words, env, cwd = json.loads(out)
    decode = lambda text: os.fsdecode(base64.b64decode(text))  # noqa: E731
    return [decode(word) for word in words], {decode(k): decode(v) for k, v in env.items()}, decode(cwd)


async def test_words_reach_the_program_byte_for_byte(launch):
    words, _, _ = await told(await launch(Mode.EXEC, [sys.executable, "-c", TELL, *HOSTILE]))
    assert words == HOSTILE


async def test_environment_reaches_the_program_byte_for_byte(launch):
    env = {f"V{number}": word for number, word in enumerate(HOSTILE)}
    env |= {
        "LONG": "x" * 100_000,
        "IFS": " x",
        "LC_ALL": "C",
        "CDPATH": "/tmp",
        "_x": "1",
        "n" * 255: "long name",
    }
    _, seen, _ = await told(await launch(Mode.EXEC, [sys.executable, "-c", TELL], env=env))
    assert {name: seen.get(name) for name in env} == env


async def test_many_variables_of_together_more_than_64_kib_arrive(launch):
    env = {f"NAME_{number}": "v" * 300 for number in range(1000)}
    _, seen, _ = await told(await launch(Mode.EXEC, [sys.executable, "-c", TELL], env=env))
    assert env.items() <= seen.items()


async def test_nothing_of_the_launcher_is_in_the_environment(launch):
    _, seen, _ = await told(await launch(Mode.EXEC, [sys.executable, "-c", TELL], cwd="/"))
    ours = [name for name in seen if "claude_vm" in name.lower() or name == "OLDPWD"]
    assert ours in ([], ["CLAUDE_VM_SIM"])
    assert "SSH_AUTH_SOCK" not in seen


async def test_nothing_of_the_launcher_is_among_an_evaluated_words_names_or_arguments(launch):
    process = await launch(
        Mode.EVAL, ['compgen -v; compgen -A function; printf "<%s>" "$#" "$0" $-; shopt -p execfail'], cwd="/"
    )
    status, out, _ = await collect(process)
    assert b"claude_vm" not in out.lower().replace(b"claude_vm_sim\n", b"")
    assert b"<0><bash>" in out
    assert status == 1  # shopt tells with its status that the option is off


async def test_hostile_working_directories_are_entered(launch, tmp_path):
    for name in ("a b", "-rf", "$(id)", "new\nline\n", "é'\"", os.fsdecode(bytes(range(0x80, 0xA0)))):
        folder = tmp_path / name
        folder.mkdir()
        _, seen, cwd = await told(await launch(Mode.EXEC, [sys.executable, "-c", TELL], cwd=str(folder)))
        assert cwd == str(folder) == seen["PWD"]


async def test_missing_working_directory_is_an_error_of_ours(launch, tmp_path):
    status, out, err = await collect(await launch(Mode.EXEC, ["true"], cwd=str(tmp_path / "gone\n")))
    assert (status, out) == (125, b"")
    assert b"working directory is not there" in err
    assert b"gone" in err


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
async def test_exit_status_is_the_programs_or_the_shells(launch, words, expected):
    status, out, _ = await collect(await launch(Mode.EXEC, words))
    assert (status, out) == (expected, b"")


@pytest.mark.parametrize(("name", "expected"), [("TERM", 143), ("KILL", 137), ("INT", 130), ("SEGV", 139)])
async def test_death_by_signal_is_told(launch, name, expected):
    status, _, _ = await collect(await launch(Mode.EXEC, ["sh", "-c", f"ulimit -c 0; kill -s {name} $$"]))
    assert status == expected


async def test_a_word_is_evaluated_by_a_shell_that_has_read_the_profile(launch, server):
    status, out, _ = await collect(await launch(Mode.EVAL, ["f() { echo $((6*7)); }; f | cat; exit 9"]))
    assert (status, out) == (9, b"42\n")
    status, out, _ = await collect(await launch(Mode.EVAL, ["shopt -q login_shell && echo yes; false"]))
    assert (status, out) == (1, b"yes\n")


async def test_a_syntax_error_in_an_evaluated_word_is_a_failure(launch):
    status, out, err = await collect(await launch(Mode.EVAL, ["echo 'unfinished"]))
    assert out == b""
    assert status != 0
    assert b"unexpected EOF" in err


async def test_the_profile_neither_reads_the_input_nor_writes_the_output(launch, tmp_path):
    (tmp_path / ".bash_profile").write_text(
        'echo loud; read -r line; echo "profile: <$line>"; export A=profile B=profile\n'
    )
    home = {"HOME": str(tmp_path)}
    # The profile is read at the start of the login shell: a second one, with another home, reads this one.
    inner = launch_command("abc", pty=False).split(" ", 3)[3]
    script = f'exec env HOME={tmp_path} CLAUDE_VM_RUN={tmp_path} "$LAUNCHER" abc {inner}'
    folder = tmp_path / "sessions/abc"
    folder.mkdir(parents=True)
    for file in launch_files(
        "abc", mode=Mode.EXEC, argv=["sh", "-c", "echo $A $B; cat"], env={"A": "session"}
    ):
        (folder / file.path.rpartition("/")[2]).write_bytes(file.data)
    from claude_vm_tests_sshd import LAUNCHER

    process = await launch(Mode.EVAL, [script], env={"LAUNCHER": str(LAUNCHER), **home})
    await process.write(b"input\n")
    status, out, err = await collect(process)
    assert (status, out) == (0, b"session profile\ninput\n")
    assert err == b"loud\nprofile: <>\n"


async def test_descriptors_beyond_the_three_are_closed(launch):
    listing = "import os; print([n for n in range(3, 200) if os.path.exists(f'/proc/self/fd/{n}')])"
    status, out, _ = await collect(await launch(Mode.EXEC, [sys.executable, "-c", listing]))
    assert (status, out) == (0, b"[]\n")


async def test_a_session_without_words_is_an_interactive_shell(launch, pty_allowed):
    process = await launch(Mode.SHELL, pty=Pty("xterm-256color", 33, 99), env={"PS1": "never seen"}, cwd="/")
    await process.write(b"case $- in *i*) echo inter''active; esac; pwd; exit 5\n")
    status, out, _ = await collect(process)
    assert status == 5
    assert b"interactive\r\n/\r\n" in out


async def test_without_a_terminal_a_session_without_words_runs_what_it_reads(launch):
    process = await launch(Mode.SHELL, cwd="/")
    await process.write(b"case $- in *i*) echo interactive; esac; pwd; exit 5\n")
    assert await collect(process) == (5, b"/\n", b"")


async def test_secrets_are_gone_when_the_program_runs(launch, server):
    process = await launch(Mode.EXEC, ["sh", "-c", "echo started; cat"], env={"TOKEN": "s3cret-canary"})
    assert await process.read_stdout(100) == b"started\n"
    files = [path for path in server.run.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"argv", "cwd", "env", "mode", "group"}
    assert not any(b"canary" in path.read_bytes() for path in files)
    await collect(process)


async def test_a_session_runs_once(launch, link, server):
    first = await launch(Mode.EXEC, ["true"])
    assert (await collect(first))[0] == 0
    again = await link.run(server.command(launch_command("0000000001", pty=False)))
    assert (again.status, again.stdout) == (125, b"")


@pytest.mark.parametrize("word", ["", "..", "a/b", "-x", "a b", "ä"])
def test_the_launcher_refuses_what_is_no_id(word, tmp_path):
    from claude_vm_tests_sshd import LAUNCHER

    done = subprocess.run(
        [LAUNCHER, word], capture_output=True, check=False, env={"CLAUDE_VM_RUN": str(tmp_path)}
    )
    assert done.returncode == 125
    assert b"session's id" in done.stderr


def test_the_launcher_names_the_folder_that_is_missing(tmp_path):
    from claude_vm_tests_sshd import LAUNCHER

    done = subprocess.run(
        [LAUNCHER, "abc"], capture_output=True, check=False, env={"CLAUDE_VM_RUN": str(tmp_path)}
    )
    assert done.returncode == 125
    assert str(tmp_path).encode() in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        {"mode": Mode.EXEC},
        {"mode": Mode.EVAL},
        {"mode": Mode.EVAL, "argv": ["a", "b"]},
        {"mode": Mode.EXEC, "argv": ["a\0b"]},
        {"mode": Mode.SHELL, "env": {"a\0": "x"}},
        {"mode": Mode.SHELL, "env": {"a.b": "x"}},
        {"mode": Mode.SHELL, "env": {"": "x"}},
        {"mode": Mode.SHELL, "env": {"A\n": "x"}},
        {"mode": Mode.SHELL, "env": {"UID": "0"}},
        {"mode": Mode.SHELL, "env": {"A": "x\0B=y"}},
        {"mode": Mode.SHELL, "cwd": "relative"},
        {"mode": Mode.SHELL, "cwd": "/a\0b"},
    ],
)
def test_what_cannot_be_launched_is_refused_here(arguments):
    with pytest.raises(LaunchError):
        launch_files("abc", **arguments)


@pytest.mark.parametrize("session_id", ["", "../x", "a b", "x;id", "a\n", "-a", "é", "a" * 65])
def test_no_session_id_can_reach_a_shell_as_anything_else(session_id):
    for call in (lambda: launch_command(session_id, pty=True), lambda: group_file(session_id)):
        with pytest.raises(LaunchError):
            call()
    with pytest.raises(LaunchError):
        launch_files(session_id, mode=Mode.SHELL)


def test_the_mode_comes_last_because_it_completes_the_set():
    files = launch_files("abc", mode=Mode.SHELL)
    assert files[-1].path == "/run/claude-vm/sessions/abc/mode"
    assert {file.mode for file in files} == {0o600}
