"""Primed shells and the sessions that they become, by the real holder: behind OpenSSH and in a simulation."""

import hashlib
import json
import os
import sys

import anyio
import pytest
from claude_vm_tests_reading import attach, held_sessions, until, whole

from claude_vm.drivers.guest.holder import shell
from claude_vm.supervisor.daemon.sessions.outputs import Outputs
from claude_vm.supervisor.ssh.errors import InputClosedError, LinkLostError, ShellError, SshError
from claude_vm.supervisor.ssh.launch import LaunchMode
from claude_vm.supervisor.ssh.process import Pty
from claude_vm.supervisor.ssh.shells import ShellKind, prime

pytestmark = pytest.mark.anyio

BOTH = (ShellKind.PTY, ShellKind.PIPES)
TERMINAL = Pty("xterm-256color", 30, 100)


async def test_words_run_exactly_as_they_are(session):
    words = ["printf", "%s|", "a b", "", "'\"$x`", "ä", "\n"]
    process = await session(LaunchMode.EXEC, words)
    assert await whole(process.read_stdout) == "a b||'\"$x`|ä|\n|".encode()
    assert await process.wait() == 0
    await process.aclose()


@pytest.mark.parametrize("pty", [None, TERMINAL], ids=["pipes", "terminal"])
@pytest.mark.parametrize(
    ("line", "status"),
    [("exit 37", 37), ("kill -TERM $$", 143), ("kill -BUS $$", 135), ("true", 0), ("kill -9 $$", 137)],
)
async def test_the_exit_status_is_exact(session, pty, line, status):
    process = await session(LaunchMode.EXEC, ["sh", "-c", line], pty=pty)
    assert await process.wait() == status
    await process.aclose()


@pytest.mark.parametrize("pty", [None, TERMINAL], ids=["pipes", "terminal"])
async def test_what_is_not_found_is_127_and_no_prompt_follows(session, pty):
    process = await session(LaunchMode.EXEC, ["no-such-program"], pty=pty)
    with anyio.fail_after(20):
        assert await process.wait() == 127
    await process.aclose()


async def test_stdout_and_stderr_are_apart_and_all_bytes_pass(session):
    process = await session(LaunchMode.EXEC, ["sh", "-c", "echo wrong >&2; cat"])
    data = bytes(range(256)) * 4
    await process.write(data)
    process.write_eof()
    assert await whole(process.read_stdout) == data
    assert await whole(process.read_stderr) == b"wrong\n"
    assert await process.wait() == 0
    await process.aclose()


async def test_many_bytes_pass_both_ways(session):
    process = await session(LaunchMode.EXEC, ["cat"])
    block = os.urandom(1 << 16)
    count = 200
    sent, received = hashlib.sha256(), hashlib.sha256()

    async def feed():
        for _ in range(count):
            sent.update(block)
            await process.write(block)
        process.write_eof()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(feed)
        while data := await process.read_stdout(65536):
            received.update(data)
    assert sent.digest() == received.digest()
    assert await process.wait() == 0
    await process.aclose()


async def test_a_reader_that_stops_stops_the_writer(session, server):
    mark = server.scratch / "written"
    program = (
        "import os\nn = 0\nos.set_blocking(1, True)\n"
        f"while True:\n n += os.write(1, bytes(65536)); open({str(mark)!r}, 'w').write(str(n))"
    )
    process = await session(LaunchMode.EXEC, [sys.executable, "-c", program])
    assert await process.read_stdout(1) == b"\0"
    last = -1
    with anyio.fail_after(30):
        while (now := int(mark.read_text() or 0) if mark.exists() else 0) != last or not now:
            last = now
            await anyio.sleep(0.5)
    assert last < 8 << 20
    await process.aclose()


async def test_a_terminal_has_its_size_before_the_first_output_and_follows(session):
    process = await session(LaunchMode.EXEC, ["sh", "-c", "stty size; read x; stty size"], pty=TERMINAL)
    assert b"30 100" in await until(process, b"\n")
    process.resize(40, 120)
    await process.write(b"go\r")
    assert b"40 120" in await whole(process.read_stdout)
    await process.aclose()


async def test_an_interactive_shell_shows_a_prompt_and_takes_lines(session):
    process = await session(LaunchMode.SHELL, pty=TERMINAL, env={"PS1": "ready> "})
    await until(process, b"ready> ")
    await process.write(b"echo $((40 + 2)); exit 5\r")
    assert b"42" in await whole(process.read_stdout)
    assert await process.wait() == 5
    await process.aclose()


async def test_ctrl_c_reaches_the_foreground_of_a_terminal(session):
    process = await session(LaunchMode.EVAL, ["echo begun; sleep 100; echo not reached"], pty=TERMINAL)
    await until(process, b"begun")
    await process.write(b"\x03")
    with anyio.fail_after(20):
        assert await process.wait() == 130
    await process.aclose()


@pytest.mark.parametrize("pty", [None, TERMINAL], ids=["pipes", "terminal"])
@pytest.mark.parametrize(("name", "status"), [("INT", 130), ("TERM", 143), ("HUP", 129)])
async def test_a_signal_reaches_the_process_group(session, name, status, pty):
    process = await session(LaunchMode.EXEC, ["sh", "-c", "(echo ready; exec sleep 1000); true"], pty=pty)
    await until(process, b"ready")
    process.send_signal(name)
    with anyio.fail_after(20):
        assert await process.wait() == status
    assert await whole(process.read_stdout) in {b"", b"\r\n"}  # its child, which holds the pipe, died too
    await process.aclose()


async def test_a_terminal_of_another_kind_gets_a_shell_of_its_own(session):
    process = await session(LaunchMode.EXEC, ["sh", "-c", "echo $TERM"], pty=Pty("vt100", 24, 80))
    assert b"vt100" in await whole(process.read_stdout)
    await process.aclose()


async def test_large_environments_arrive(session):
    env = {"LARGE": "x" * 65536, "ODD": "a\nb\x03\x04c"}
    process = await session(
        LaunchMode.EXEC, ["sh", "-c", 'printf %s "${#LARGE}$ODD" | od -An -c'], env=env, pty=TERMINAL
    )
    text = await whole(process.read_stdout)
    assert b"6   5   5   3   6   a  \\n   b 003 004   c" in text
    await process.aclose()


async def test_a_session_is_found_again_and_read_on(link, server, put):
    shells = await prime(link, BOTH, term="xterm-256color")
    name = put(LaunchMode.EXEC, ["sh", "-c", "echo one; read x; echo two; exit 3"])
    process = await shells.start(name, pty=None)
    await until(process, b"one\n")
    await process.aclose()
    await settled(link, name)
    again = await attach(link, name)
    await again.write(b"\n")
    assert b"two\n" in await whole(again.read_stdout)
    assert await again.wait() == 3
    await again.aclose()
    assert (await held_sessions(link))[name] == {"session": name, "kind": "pipes", "status": 3}


async def test_what_reads_its_input_on_pipes_ends_when_its_session_is_followed_without_a_client(link, put):
    shells = await prime(link, (ShellKind.PIPES,), term="xterm-256color")
    name = put(LaunchMode.EXEC, ["sh", "-c", "cat; exit 3"])
    process = await shells.start(name, pty=None)
    await process.write(b"half a line")
    await process.aclose()
    await settled(link, name)
    with anyio.fail_after(20):
        again = await attach(link, name)
        again.write_eof()
        assert await Outputs().carry(again) == 3


async def settled(link, name):
    with anyio.fail_after(20):
        while name not in await held_sessions(link):
            pass


@pytest.mark.parametrize("server", ["sim"], indirect=True)  # its holder is in this process
async def test_a_terminal_that_nobody_watches_goes_on_and_forgets_the_oldest(link, put, server, monkeypatch):
    monkeypatch.setattr(shell, "ALONE_S", 0.3)
    shells = await prime(link, (ShellKind.PTY,), term="xterm-256color")
    mark = server.scratch / "done"
    name = put(
        LaunchMode.EXEC,
        ["sh", "-c", f"read x; head -c 3000000 /dev/zero | tr '\\0' x; echo end; touch {mark}; sleep 60"],
    )
    process = await shells.start(name, pty=TERMINAL)
    await process.write(b"\r")
    await process.aclose()
    with anyio.fail_after(30):
        while not mark.exists():
            await held_sessions(link)
    again = await attach(link, name)
    text = await until(again, b"end")
    assert 900_000 < len(text) < 1_100_000
    await again.aclose()


async def test_pipes_that_nobody_watches_lose_nothing(link, put):
    shells = await prime(link, (ShellKind.PIPES,), term="xterm-256color")
    name = put(LaunchMode.EXEC, ["sh", "-c", "head -c 3000000 /dev/zero"])
    process = await shells.start(name, pty=None)
    await process.aclose()
    await settled(link, name)
    again = await attach(link, name)
    assert len(await whole(again.read_stdout)) == 3_000_000
    assert await again.wait() == 0
    await again.aclose()


@pytest.mark.parametrize("taken", [True, False])
async def test_what_was_taken_is_not_told_again_and_what_was_only_read_is(link, put, taken):
    shells = await prime(link, (ShellKind.PIPES,), term="xterm-256color")
    name = put(LaunchMode.EXEC, ["sh", "-c", "echo first; read x; echo second"])
    process = await shells.start(name, pty=None)
    assert await process.read_stdout(100) == b"first\n"
    if taken:
        with anyio.move_on_after(0):  # whoever wants more has taken what came before
            await process.read_stdout(100)
    await process.aclose()
    await held_sessions(link)  # the acknowledgement is before it on the way
    again = await attach(link, name)
    await again.write(b"\n")
    assert await whole(again.read_stdout) == (b"second\n" if taken else b"first\nsecond\n")
    await again.aclose()


async def test_a_session_that_is_not_there_is_refused(link, holder):
    with pytest.raises(ShellError, match="no such session"):
        await attach(link, "abc")


async def test_a_lost_connection_is_told(session, server):
    process = await session(LaunchMode.EXEC, ["sleep", "100"])
    server.hang_up()
    with anyio.fail_after(20), pytest.raises(LinkLostError):
        await process.wait()
    with pytest.raises(InputClosedError):
        await process.write(b"x")


async def test_a_shell_whose_profile_ends_it_is_an_error(link, holder, home):
    (home / ".bash_profile").write_text("exit 3\n")
    with pytest.raises(SshError, match="does not start"):
        await prime(link, BOTH, term="xterm-256color")


async def test_nothing_of_ours_is_in_an_interactive_shell(session):
    line = (
        'compgen -v | grep -i claude; declare -F; trap -p; history; echo "$0|$#|$SHLVL|$-";'
        " ls -1 /proc/$$/fd; exit\r"
    )
    process = await session(LaunchMode.SHELL, pty=TERMINAL, env={"PS1": "ready> "})
    await until(process, b"ready> ")
    await process.write(line.encode())
    text = (await whole(process.read_stdout)).decode().replace("\r", "")
    said = text.split("exit\n", 1)[1]
    assert "claude_vm" not in said
    assert "trap --" not in said
    assert "bash|0|1|himBHs" in said
    descriptors = set(said.split("himBHs\n")[1].split()) - {"exit"}
    assert descriptors == {"0", "1", "2", "255"}
    await process.aclose()


@pytest.mark.parametrize("pty", [None, TERMINAL], ids=["pipes", "terminal"])
async def test_a_program_is_given_a_clean_process(session, pty):
    program = (
        "import json, os, resource, signal\n"
        "status = dict(l.split(':', 1) for l in open('/proc/self/status'))\n"
        "print(json.dumps({k: status[k].strip() for k in ('SigBlk', 'SigIgn', 'SigCgt')}))\n"
        "fds = sorted(map(int, os.listdir('/proc/self/fd')))[:-1]\n"
        "print(json.dumps([fds, os.getpgrp() == os.getpid(), os.getsid(0) == os.getpid()]))\n"
    )
    process = await session(LaunchMode.EXEC, ["python3", "-S", "-c", program], pty=pty)
    lines = (await whole(process.read_stdout)).decode().splitlines()
    signals, rest = json.loads(lines[0]), json.loads(lines[1])
    assert int(signals["SigBlk"], 16) == 0
    # Python itself ignores SIGPIPE and SIGXFSZ, and catches SIGINT. Beyond 31 are the C library's own.
    assert int(signals["SigIgn"], 16) & 0x7FFFFFFF == 1 << 12 | 1 << 24
    assert int(signals["SigCgt"], 16) & 0x7FFFFFFF == 1 << 1
    assert rest == [[0, 1, 2], True, True]
    await process.aclose()


ADOPTS = pytest.mark.parametrize("server", ["openssh"], indirect=True)
"""The simulated guest's holder is a thread of the supervisor, which adopts nobody."""


@ADOPTS
@pytest.mark.parametrize("pty", [None, TERMINAL], ids=["pipes", "terminal"])
async def test_what_a_session_leaves_at_work_is_told_at_its_end(session, pty):
    line = "trap '' HUP; setsid -f sleep 711 </dev/null >/dev/null 2>&1; sleep 712 & exit 5"
    process = await session(LaunchMode.EXEC, ["sh", "-c", line], pty=pty)
    assert await process.wait() == 5
    left = await process.remaining()
    assert (left.count, sorted(left.commands)) == (2, ["sleep 711", "sleep 712"])
    await process.aclose()


@ADOPTS
async def test_a_session_that_leaves_nothing_is_not_waited_for(session):
    process = await session(LaunchMode.EXEC, ["true"])
    assert await process.wait() == 0
    with anyio.fail_after(0):
        assert (await process.remaining()).count == 0
    await process.aclose()


@ADOPTS
async def test_an_orphan_that_dies_while_its_session_runs_is_gone(session):
    orphan = 'setsid -f sh -c "echo \\$\\$ >orphan"; until [ -s orphan ]; do :; done; read pid <orphan; '
    line = orphan + "while [ -e /proc/$pid ]; do :; done; echo gone"
    process = await session(LaunchMode.EXEC, ["sh", "-c", line])
    with anyio.fail_after(20):
        assert await whole(process.read_stdout) == b"gone\n"
    await process.aclose()
