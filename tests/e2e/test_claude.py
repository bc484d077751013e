"""The real Claude Code in a real VM, against a scripted Messages API on the host's loopback."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.vm, pytest.mark.claude, pytest.mark.timeout(600)]

KEY = "sk-ant-api03-" + "k" * 80 + "-scripted"
TOKEN = "sk-ant-oat01-" + "t" * 80


def test_a_task_arrives_byte_for_byte_makes_a_file_and_its_json_goes_through_a_pipe(
    claude_vm, folder, api, script_class
):
    task = "quotes ' \" and $(id) `id` \\ é\n  -- second line * "
    api.add(script_class.bash("second line", "printf made-in-the-vm > proof.txt; uname -n"))
    pipe = '"$1" -p "$2" --output-format json | "$3" -m json.tool'
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", pipe, "bash", claude_vm.program, task, sys.executable],
        cwd=folder,
        env=claude_vm.env | {"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": api.url},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        timeout=240,
        check=True,
    )
    answer = json.loads(done.stdout)
    assert answer["type"] == "result"
    assert answer["result"] == "The scripted task is done."
    assert answer["is_error"] is False
    made = folder / "proof.txt"
    assert made.read_text() == "made-in-the-vm"
    assert made.stat().st_uid == os.getuid()
    first = api.wait_for_task("second line", timeout_s=1)
    assert task.strip() in first.task
    assert first.headers["x-api-key"] == KEY


def test_claudes_own_version_and_failure_come_through(claude_vm):
    done = claude_vm.run("agent", "--version")
    assert b"Claude Code" in done.stdout
    wrong = claude_vm.run("agent", "--no-such-option-of-claude")
    assert wrong.returncode == 1
    assert b"no-such-option" in wrong.stderr


def test_interactive_claude_takes_a_task_with_no_other_key_pressed(  # noqa: PLR0917 - fixtures
    claude_vm, folder, api, script_class, tmux_class, tmp_path
):
    """With an OAuth token; `test_background.py` has a conversation with a key."""
    task = "type this task"
    api.add(script_class.bash(task, "echo typed > typed.txt"))
    env = claude_vm.env | {
        "CLAUDE_CODE_OAUTH_TOKEN": TOKEN,
        "ANTHROPIC_BASE_URL": api.url,
        "TERM": "tmux-256color",
        "LANG": "C.UTF-8",
    }
    with tmux_class(tmp_path / "tmux", columns=120, rows=40) as terminal:
        terminal.run([claude_vm.program], cwd=folder, env=env)
        terminal.wait_for("\u276f", timeout=180)
        terminal.type(task)
        request = api.wait_for_task(task, timeout_s=120)
        terminal.wait_for("The scripted task is done.", timeout=120)
        assert (folder / "typed.txt").read_text() == "typed\n"
        assert request.headers["authorization"] == f"Bearer {TOKEN}"
        terminal.press("C-c")
        terminal.press("C-c")
        terminal.wait_for("host>", count=2, timeout=60)
