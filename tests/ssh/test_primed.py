"""A shell that waited can't be told from one that was just started, whatever the profile does."""

# ruff: noqa: E501, PLR0917 - shell lines stay whole; each way is crossed with each kind
import os
import sys
from contextlib import suppress

import anyio
import pytest
from claude_vm_tests_reading import until, whole

from claude_vm.supervisor.ssh.launch import LaunchMode
from claude_vm.supervisor.ssh.process import Pty
from claude_vm.supervisor.ssh.shells import ShellKind, prime

pytestmark = pytest.mark.anyio

TERMINAL = Pty("xterm-256color", 30, 100)
everywhere = pytest.mark.parametrize("pty", [None, TERMINAL], ids=["pipes", "terminal"])

# Everything by which a process or a shell could tell; what must differ (process numbers, times) is left out.
PROCESS = (
    "import json, os, resource, sys\n"
    "status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
    "limits = {n: resource.getrlimit(getattr(resource, n)) for n in dir(resource) if n.startswith('RLIMIT')}\n"
    "names = ('Umask', 'SigBlk', 'SigIgn', 'SigPnd', 'ShdPnd', 'Groups', 'NoNewPrivs', 'CapEff', 'Seccomp')\n"
    "facts = {name: status[name].split() for name in names}\n"
    "env = {k: v for k, v in os.environ.items() if k not in ('SSH_TTY', '_')}\n"
    "leads = [os.getpid() == os.getpgrp(), os.getpid() == os.getsid(0)]\n"
    "front = os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp()\n"
    "print(json.dumps([facts, limits, env, sorted(map(int, os.listdir('/proc/self/fd')))[:-1], leads, front,\n"
    "  os.getcwd(), os.nice(0), os.sched_getscheduler(0), open('/proc/self/oom_score_adj').read()]))\n"
)
SHELL = (
    "env | grep -v -e SSH_TTY -e ^_= | sort; set | grep -v -e PID -e SSH_TTY -e SECONDS -e RANDOM -e LINENO -e ^_= "
    "-e EPOCH -e BASH_ARG; shopt; set -o; trap -p; alias; declare -F; history; umask; ulimit -a; ulimit -aH; "
    'echo "<$-|$0|$#|$*|$SHLVL|$?|$!|$PWD|${OLDPWD-none}>"; jobs; dirs; hash; ls /proc/$$/fd; bind -p | md5sum; '
    # read by the shell itself: while it waits for a child, it blocks that child's signal
    "mapfile -t facts </proc/$$/status; printf '%s\\n' \"${facts[@]}\" | grep -e SigBlk -e SigIgn -e SigCgt; stty -a; tty | tr 0-9 n; echo fin''ished"
)


async def cold(link, put, mode, words, pty, **more):
    """Prime and start at once, as without a pool."""
    shells = await prime(link, [ShellKind.PIPES if pty is None else ShellKind.PTY], term=TERMINAL.term)
    return await shells.start(put(mode, words, **more), pty=pty)


async def warm(link, put, mode, words, pty, **more):
    """Be primed for both, see another shell come and go, and hold still meanwhile."""
    shells = await prime(link, list(ShellKind), term=TERMINAL.term)
    other = await cold(
        link, put, LaunchMode.EXEC, ["sh", "-c", "umask 077; cd /; ulimit -n 99; stty -echo; true"], pty
    )
    await other.wait()
    await other.aclose()
    await prime(link, [ShellKind.PTY], term="vt100")
    return await shells.start(put(mode, words, **more), pty=pty)


async def primed_again(link, put, mode, words, pty, **more):
    """Be primed for another terminal first."""
    shells = await prime(link, list(ShellKind), term="vt220")
    return await shells.start(put(mode, words, **more), pty=pty)


async def taken_over(link, put, mode, words, pty, **more):
    """Be primed by a supervisor that went away, as after its restart."""
    await (await prime(link, list(ShellKind), term=TERMINAL.term)).aclose()
    return await cold(link, put, mode, words, pty, **more)


ways = pytest.mark.parametrize("way", [warm, primed_again, taken_over])


@ways
@everywhere
async def test_a_program_cannot_tell_how_long_its_shell_waited(link, put, pty, way):
    words = [sys.executable, "-S", "-c", PROCESS]
    said = []
    for start in (cold, way):
        process = await start(link, put, LaunchMode.EXEC, words, pty, env={"A": "b"}, cwd="/")
        said.append(await whole(process.read_stdout))
        assert await process.wait() == 0, said
        await process.aclose()
    assert b"RLIMIT_NOFILE" in said[0]
    assert said[0] == said[1]


@ways
@everywhere
@pytest.mark.parametrize("mode", [LaunchMode.EVAL, LaunchMode.SHELL])
async def test_a_shell_cannot_tell_how_long_it_waited(link, put, pty, way, mode, home):
    (home / ".bash_profile").write_text(
        "set -o noclobber; shopt -s extglob; trap 'true' USR1; alias ll=ls; umask 027; f() { true; }; export P=1\n"
        "HISTFILE=~/.history; HISTCONTROL=ignorespace\n"
    )
    (home / ".history").write_text("an old line\n")
    said = []
    for start in (cold, way):
        words = [SHELL] if mode is LaunchMode.EVAL else []
        process = await start(link, put, mode, words, pty, env={"PS1": "ready> ", "A": "b"}, cwd="/tmp")
        if mode is LaunchMode.SHELL:
            if pty is not None:
                await until(process, b"ready> ")
            await process.write(SHELL.encode() + b"\n")
        text = await until(process, b"finished")
        if mode is LaunchMode.SHELL:
            await process.write(b"unset HISTFILE; exit\n")
        await whole(process.read_stdout)
        await process.aclose()
        said.append(text.split(b"finished")[0].decode().replace("\r", "").splitlines())
    assert "f ()" in "\n".join(said[0]) or mode is LaunchMode.SHELL
    assert said[0] == said[1]
    if mode is LaunchMode.SHELL and pty is not None:
        assert any("an old line" in line for line in said[0])


@everywhere
async def test_every_control_byte_in_a_value_arrives_and_none_is_typed(session, pty):
    value = "".join(map(chr, range(1, 32))) + "\x7f" + "\x03\x04\x1a\x1c" * 2000
    program = "import os, sys; sys.exit(os.environ['V'] != sys.argv[1] or os.environ['V'] != sys.argv[2])"
    process = await session(
        LaunchMode.EXEC, [sys.executable, "-S", "-c", program, value, value], env={"V": value}, pty=pty
    )
    assert await whole(process.read_stdout) == b""
    assert await process.wait() == 0


@everywhere
async def test_a_megabyte_of_arguments_arrives(session, pty):
    words = [f"{number:05}" + "w" * 95 for number in range(10_000)]
    program = "import sys; print(len(sys.argv[1:]), sys.argv[-1][:5], sum(map(len, sys.argv[1:])))"
    process = await session(LaunchMode.EXEC, [sys.executable, "-S", "-c", program, *words], pty=pty)
    assert (await whole(process.read_stdout)).strip() == b"10000 09999 1000000"


@pytest.mark.parametrize("turns", [0, 1, 3, 10])
async def test_a_ctrl_c_right_behind_the_claim_ends_a_program_without_a_prompt(link, put, turns):
    shells = await prime(link, [ShellKind.PTY], term=TERMINAL.term)
    process = await shells.start(
        put(LaunchMode.EXEC, ["sleep", "1000"], env={"PS1": "prompt> "}), pty=TERMINAL
    )
    with anyio.move_on_after(turns / 1000):
        await process.read_stdout(1)
    await process.write(b"\x03")
    with anyio.fail_after(20):
        assert await process.wait() == 130
    text = await whole(process.read_stdout)
    assert text.replace(b"^C", b"").strip() == b""
    await process.aclose()


async def opened(pipe):
    """Wait until somebody reads it; return a descriptor that holds the reader there."""
    while True:
        with suppress(OSError):
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        await anyio.sleep(0.01)


async def test_a_ctrl_c_while_the_shell_itself_becomes_the_session_ends_it(link, put, home):
    # The launcher is held in the midst of its work: the file of the words is a pipe that nobody writes to.
    shells = await prime(link, [ShellKind.PTY], term=TERMINAL.term)
    name = put(LaunchMode.EXEC, ["true"], env={"PS1": "prompt> "})
    folder = put.folder / name
    (folder / "launch").unlink()
    os.mkfifo(folder / "launch")
    process = await shells.start(name, pty=TERMINAL)
    with anyio.fail_after(20):
        gate = await opened(folder / "launch")
    status = None
    with anyio.fail_after(20):
        while status is None:
            # Bash notes one that comes between its opening and its reading, and reads on: a file would end.
            await process.write(b"\x03")
            with anyio.move_on_after(1):
                status = await process.wait()
    os.close(gate)
    assert status == 130
    assert b"prompt" not in await whole(process.read_stdout)
    await process.aclose()


async def test_ctrl_c_at_a_prompt_leads_to_the_next_prompt(link, put):
    process = await cold(link, put, LaunchMode.SHELL, [], TERMINAL, env={"PS1": "ready> "})
    await until(process, b"ready> ")
    await process.write(b"echo be''gun; while :; do :; done\r")
    await until(process, b"begun\r\n")
    await process.write(b"\x03")
    await until(process, b"ready> ")
    await process.write(b"echo $?; exit 4\r")
    assert b"130" in await whole(process.read_stdout)
    assert await process.wait() == 4
    await process.aclose()


PROFILES = {
    "prints": "echo from the profile; echo to stderr >&2",
    "functions": "".join(
        f"{name}() {{ echo {name} was called; }}; " for name in ("read", "cd", "unset", "printf")
    ),
    "strict": "set -eu",
    "pipefail": "set -euo pipefail; shopt -s failglob nullglob inherit_errexit",
    "moves": "cd /usr/lib",
    "exit trap": "trap 'echo bye' EXIT",
    "debug trap": "trap 'true debugging' DEBUG; set -T",
    "error trap": "trap 'echo failed' ERR; set -E",
    "posix": "set -o posix",
    "noglob": "set -f; IFS=/x; set -k",
    "restricted words": "set -o nounset; unset HOME SHELL; readonly PS4",
    "arguments": "set -- a b c; shift",
    "low limits": "ulimit -c 0; umask 077",
    "interrupt trap": "trap '' INT; trap - INT",
    "prompts": "PROMPT_COMMAND='true'; PS0=''",
    "open files": "exec 5</dev/null 8>&1",
}


@everywhere
@pytest.mark.parametrize("profile", PROFILES)
async def test_whatever_the_profile_does_the_session_runs(link, put, home, pty, profile):
    (home / ".bash_profile").write_text(PROFILES[profile] + "\n")
    words = ["sh", "-c", "echo here; exit 6"]
    process = await cold(link, put, LaunchMode.EXEC, words, pty, env={"A": "b"})
    text = await whole(process.read_stdout)
    errors = await whole(process.read_stderr)
    assert b"here" in text, (text, errors)
    assert await process.wait() == 6, (text, errors)
    await process.aclose()


async def test_what_the_profile_prints_comes_out_and_not_among_the_programs_output(link, put, home):
    (home / ".bash_profile").write_text(PROFILES["prints"] + "\n")
    process = await cold(link, put, LaunchMode.EXEC, ["echo", "mine"], None)
    assert await whole(process.read_stdout) == b"mine\n"
    assert await whole(process.read_stderr) == b"from the profile\nto stderr\n"
    process = await cold(link, put, LaunchMode.EXEC, ["echo", "mine"], TERMINAL)
    assert await whole(process.read_stdout) == b"from the profile\r\nto stderr\r\nmine\r\n"


@everywhere
async def test_a_profile_that_reads_gets_nothing_and_takes_nothing_from_the_session(link, put, home, pty):
    (home / ".bash_profile").write_text('read -r line; echo "<$line>"; cat; read -r -t 100 line\n')
    process = await cold(
        link, put, LaunchMode.EXEC, ["sh", "-c", 'read a; echo "[$a]"; read b || echo end'], pty
    )
    await process.write(b"first\n" if pty is None else b"first\r\x04")
    process.write_eof()
    text = await whole(process.read_stdout) + await whole(process.read_stderr)
    assert b"<>" in text
    assert b"[first]" in text
    assert b"end" in text
    await process.aclose()


async def test_the_profile_leaves_its_directory_when_no_other_is_wished(link, put, home):
    (home / ".bash_profile").write_text("cd /usr/lib\n")
    for pty in (None, TERMINAL):
        process = await cold(link, put, LaunchMode.EXEC, ["pwd"], pty)
        assert (await whole(process.read_stdout)).strip() == b"/usr/lib"
        await process.aclose()


@pytest.mark.parametrize("pty", [None, TERMINAL], ids=["pipes", "terminal"])
async def test_the_time_that_a_shell_waited_does_not_count(link, put, pty):
    shells = await prime(link, tuple(ShellKind), term="xterm-256color")
    await anyio.sleep(2.1)
    process = await shells.start(put(LaunchMode.SHELL), pty=pty)
    await process.write(b"echo =$SECONDS=; exit\n")
    process.write_eof()
    said = b""
    while data := await process.read_stdout(4096):
        said += data
    assert b"=0=" in said or b"=1=" in said
    await process.aclose()
