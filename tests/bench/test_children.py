"""Commands as a user sees them, with real processes; nothing here depends on how fast the machine is."""

import sys
import threading
from pathlib import Path

import pytest

from claude_vm.bench import children
from claude_vm.bench.children import OUTPUT, PROMPT, TerminalStep, is_prompt, run, together

ENV = {"PATH": "/usr/bin:/bin", "TERM": "xterm", "LANG": "C.UTF-8", "PS1": "test$ "}
# An interactive bash writes its prompt to stderr.
SHELL = ["sh", "-c", "exec bash --noprofile --norc -i 2>&1"]


def sh(script, **options):
    options.setdefault("env", ENV)
    return run(["sh", "-c", script], cwd=Path("/"), **options)


@pytest.mark.parametrize(
    "seen",
    [
        b"$ ",
        b"root@vm:/x# ",
        b"\x1b[?2004hclaude@vm:~$ ",
        b"\x1b]0;title\x07\x1b[01;32mme\x1b[00m:/$ \x1b[K",
        b"motd\r\nbash-5.2$ ",
    ],
)
def test_a_prompt_is_known_by_its_end(seen):
    assert is_prompt(seen)


@pytest.mark.parametrize("seen", [b"", b"\x1b[?2004h", b"claude-vm: cloning (0.1 s)\r\n", b"5 $ more", b"$"])
def test_what_is_no_prompt_is_none(seen):
    assert not is_prompt(seen)


def test_a_shell_on_a_terminal_is_timed_to_its_prompt_and_left():
    found = run(SHELL, env=ENV, cwd=Path("/"), steps=PROMPT, terminal=True)
    assert found.ok, found.error
    assert 0 < found.instants["shown"] <= found.instants["exited"]


def test_the_first_output_counts_and_messages_on_stderr_do_not():
    found = sh("echo message >&2; read -r _ < /dev/null; echo output", steps=OUTPUT)
    assert found.ok, found.error
    silent = sh("echo message >&2", steps=OUTPUT)
    assert not silent.ok
    assert "shown" in silent.error
    assert "message" in silent.error


def test_a_failed_command_is_no_success_even_if_it_said_something():
    found = sh("echo x; exit 3")
    assert (found.ok, found.status) == (False, 3)
    assert "exit status 3" in found.error


def test_steps_follow_each_other_and_look_at_new_output_only():
    steps = (
        TerminalStep("first", is_prompt, b"echo $((20+1))one\r"),
        TerminalStep("second", lambda seen: b"21one" in seen, b"exit\r"),
    )
    found = run(SHELL, env=ENV, cwd=Path("/"), steps=steps, terminal=True)
    assert found.ok, found.error
    assert found.instants["first"] < found.instants["second"]


def test_a_step_does_not_see_what_an_earlier_one_saw():
    def one(seen):
        return b"one" in seen

    script = "echo one; read -r _; echo two"
    found = run(
        ["sh", "-c", script],
        env=ENV,
        cwd=Path("/"),
        steps=(TerminalStep("first", one, b"x\r"), TerminalStep("second", one)),
        terminal=True,
    )
    assert "first" in found.instants
    assert "before: second" in found.error


def test_a_command_that_never_ends_is_killed_with_its_children():
    found = sh("sleep 1000 & echo x; sleep 1000", timeout_s=0.3)
    assert not found.ok
    assert "not ended" in found.error


def test_a_command_is_hung_up_after_its_last_step():
    found = sh("echo x; exec sleep 1000", hang_up=True, steps=(TerminalStep("shown", bool),))
    assert found.ok, found.error
    assert found.status == -15


def test_a_command_that_is_not_there_is_an_error_of_the_bench():
    with pytest.raises(FileNotFoundError):
        run(["/nothing/here"], env=ENV, cwd=Path("/"))


def test_commands_of_a_burst_run_side_by_side():
    meeting = threading.Barrier(4)

    def one(index):
        meeting.wait(20)
        return children.Timing(float(index), {}, 0)

    assert [t.begun_at for t in together((0.0,) * 4, one)] == [0.0, 1.0, 2.0, 3.0]


def test_the_clock_starts_before_the_process():
    code = "import time; print(time.monotonic(), flush=True)"
    said = []
    step = TerminalStep("shown", lambda seen: bool(said.append(seen)) or True)
    found = run([sys.executable, "-c", code], env=ENV, cwd=Path("/"), steps=(step,))
    inside = float(said[0])
    assert found.begun_at < inside < found.begun_at + found.instants["shown"]
