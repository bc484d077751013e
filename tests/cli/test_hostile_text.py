"""What strangers may have put into a text stays within the line that shows it, on the real client's pipes."""

import os
import subprocess
import sys

import pytest

HOSTILE = [
    b"s\nclaude-vm: all is well",
    b"s\r\nclaude-vm: all is well",
    b"s\rclaude-vm: all is well",
    b"s\x1b[2K\x1b[1A",
    "s\u2028claude-vm: all\u2029claude-vm: is well".encode(),
    "s\u202elleSw\u2066".encode(),
    "s\x85claude-vm: all is well".encode(),
    "s\x9b2K".encode(),
    b"s\x0bclaude-vm: \x0cclaude-vm: \x1c",
    b"s\xff\xfe\xed\xa0\x80",
    b"a\tb",
    b"C:\\new",
]
ACTING = "\x1b\x9b\r\x85\x0b\x0c\x1c\u2028\u2029\u202e\u2066"


def lines_of(data):
    text = data.decode()
    assert not any(character in text for character in ACTING)
    assert text.endswith("\n")
    return text.split("\n")[:-1]


@pytest.mark.parametrize("value", HOSTILE)
def test_notes_and_errors_are_the_lines_that_we_made(scripted, value):
    done = scripted.run("say", value, value, value)
    assert done.returncode == 125
    shown = lines_of(done.stderr)
    assert [line[:20].split(" ")[:2] for line in shown if not line.startswith("  ")] == [
        ["claude-vm:", "note"],
        ["claude-vm:", "progress"],
        ["claude-vm:", "error"],
    ]
    assert len(shown) == 3 + 2 + 2 + 1


def test_a_backslash_is_shown_once(scripted):
    assert b"note C:\\new\n" in scripted.run("say", "C:\\new").stderr


def test_a_refusal_is_two_lines(idle):
    text = b" ".join(HOSTILE).decode("utf-8", "replace")
    idle.serve({"code": "no", "message": text, "hint": text})
    first, second = lines_of(idle.run("status", "0").stderr)
    assert first.startswith("claude-vm: ")
    assert second.startswith("  ")


@pytest.mark.parametrize(
    "words",
    [
        ["ps", "--{}"],
        ["ps", "{}"],
        ["stop", "--all", "{}"],
        ["pool", "{}"],
        ["pool", "fill", "{}"],
        ["completion", "{}"],
        ["setup", "--docker={}"],
        ["bench", "compare", "{}", "{}"],
        ["bench", "run", "--rounds", "{}"],
        ["bench", "run", "--modes", "{}"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_told_in_our_lines(idle, words):
    given = [os.fsencode(word).replace(b"{}", b" ".join(HOSTILE)) for word in words]
    done = idle.run(*given)
    assert done.returncode in {1, 2}
    shown = lines_of(done.stderr)
    assert sum(line.startswith("claude-vm: ") for line in shown) == 1
    assert shown[0].startswith("claude-vm: ")
    assert all(line.startswith(("  ", "Usage: ", "Try '")) for line in shown[1:])


def test_a_daemon_that_does_not_start_says_why_in_one_line(idle, home):
    evil = home / "x\nclaude-vm: all is well"
    evil.write_text("no folder")
    done = idle.run("ps", environ={"CLAUDE_VM_HOME": str(evil)})
    assert done.returncode == 1
    assert sum(line.startswith("claude-vm: ") for line in lines_of(done.stderr)) == 1


def test_the_daemons_own_start_is_told_in_one_line(home):
    evil = home / "x\nclaude-vm: all is well"
    evil.write_text("no folder")
    done = subprocess.run(
        [sys.executable, "-m", "claude_vm.supervisor.daemon"],
        env={"HOME": str(home), "PATH": os.environ["PATH"], "CLAUDE_VM_HOME": str(evil)},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert len(lines_of(done.stderr)) == 1
