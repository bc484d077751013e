"""What a session leaves at work, in real VMs: it is told, and Claude Code leaves nothing there."""

import pytest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

KEY = "sk-ant-api03-" + "k" * 80 + "-scripted"


def test_what_ends_with_the_vm_is_told_on_stderr_and_not_under_quiet(claude_vm):
    line = "sleep 701 & setsid -f sudo sleep 702 </dev/null >/dev/null 2>&1; exit 3"
    done = claude_vm.run("shell", line)
    assert (done.returncode, done.stdout) == (3, b"")
    said = done.stderr.decode()
    assert "processes still at work ended with the VM: " in said
    assert "sleep 701" in said
    assert "sudo sleep 702" in said
    assert claude_vm.run("-q", "shell", line).stderr == b""
    assert claude_vm.run("shell", "sleep 0 & wait; exit 4").stderr == b""


@pytest.mark.claude
def test_work_in_the_background_is_refused_before_a_vm_is_spent(claude_vm):
    before = claude_vm.run("ps", "--all", "--json").stdout
    for words in (["--bg", "x"], ["x", "--background"], ["agent", "attach", "x"], ["agents"]):
        done = claude_vm.run(*words)
        assert done.returncode == 2
        assert b"[no-background]" in done.stderr
    assert claude_vm.run("ps", "--all", "--json").stdout == before
    # Typed in a VM, where nobody reads the words before: Claude refuses it.
    done = claude_vm.run("shell", "claude --bg x")
    assert done.returncode == 1
    assert b"still at work" not in done.stderr


@pytest.mark.claude
def test_a_conversation_that_ends_with_its_vm_is_told_after_claudes_own_last_words(
    claude_vm, folder, api, tmux_class, tmp_path
):
    env = claude_vm.env | {
        "ANTHROPIC_API_KEY": KEY,
        "ANTHROPIC_BASE_URL": api.url,
        "TERM": "tmux-256color",
        "LANG": "C.UTF-8",
    }
    with tmux_class(tmp_path / "tmux", columns=120, rows=40) as terminal:
        terminal.run([claude_vm.program], cwd=folder, env=env)
        terminal.wait_for("\u276f", timeout=180)
        terminal.type("say something")
        assert api.wait_for_task("say something", timeout_s=120).headers["x-api-key"] == KEY
        terminal.wait_for("The scripted task is done.", timeout=120)
        terminal.type("/exit")
        screen = terminal.wait_for("claude --resume` won't find it", timeout=60)
    assert screen.index("Resume this session") < screen.index("won't find it")
    assert "still at work" not in screen
