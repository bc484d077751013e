import json
import subprocess
import sys

import pytest


@pytest.mark.parametrize("words", [["--help"], ["ps", "--help"], ["shell", "--help"]])
def test_help_needs_no_daemon(idle, home, words):
    done = idle.run(*words)
    assert done.returncode == 0
    assert b"claude-vm" in done.stdout
    assert done.stderr == b""
    assert list(home.iterdir()) == []


def test_a_usage_error_needs_no_daemon(idle, home):
    done = idle.run("ps", "--nonsense")
    assert done.returncode == 2
    assert done.stdout == b""
    assert b"--nonsense" in done.stderr
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["shel", "true"], b"did you mean shell?"),
        (["polo", "status"], b"did you mean pool?"),
        (["--memroy", "4", "fix it"], b"did you mean --memory?"),
        (["shell", "--memroy", "4", "true"], b"claude-vm shell -- --memroy ..."),
    ],
)
def test_what_was_mistyped_is_refused_before_anything_is_started(idle, home, words, says):
    done = idle.run(*words)
    assert done.returncode == 2
    assert says in done.stderr
    assert b"[usage]" in done.stderr
    assert list(home.iterdir()) == []


def test_the_version_is_said_as_the_parser_says_it(idle, home):
    from claude_vm.supervisor.grammar.parse import parse
    from claude_vm.supervisor.wire.escape import printed

    fast = idle.run("--version")
    assert fast.stdout.decode() == printed(parse(["--version"]).lines)
    assert idle.run("version").stdout == fast.stdout
    assert list(home.iterdir()) == []


def test_stopping_a_daemon_that_does_not_run_starts_none(idle, home):
    done = idle.run("daemon", "stop")
    assert (done.returncode, done.stderr) == (0, b"no daemon runs\n")
    done = idle.run("daemon", "status")
    assert (done.returncode, done.stdout) == (1, b"not running\n")
    done = idle.run("daemon", "status", "--json")
    assert (done.returncode, done.stdout) == (1, b'{"pid": null}\n')
    assert list(home.iterdir()) == []


def test_completion_needs_no_daemon(idle, home):
    done = idle.run("p", environ={"_CLAUDE_VM_COMPLETE": "bash"})
    assert b"ps" in done.stdout.split()
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(("entry", "first"), [("main_setup", "setup"), ("main_shell", "shell")])
def test_the_aliases_are_sub_commands(scripted, entry, first):
    program = f"import sys; from claude_vm.supervisor.cli.main import {entry}; sys.exit({entry}())"
    done = subprocess.run(
        [sys.executable, "-c", program, "--flag"],
        env=scripted.environ,
        capture_output=True,
        timeout=20,
        check=False,
    )
    # The scripted server has no such command and says so.
    assert done.returncode == 125
    assert f"KeyError: '{first}'".encode() in done.stderr


def test_help_for_a_reader_that_ends_is_no_traceback(idle):
    client = idle.popen("--help", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with client:
        client.stdout.close()
        assert client.wait(20) == 141
        assert client.stderr.read() == b""


def test_without_a_daemon_the_same_command_runs_in_the_clients_process(idle, home):
    done = idle.run("--no-daemon", "ps", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
    assert not (home / "run" / "daemon.sock").exists()
