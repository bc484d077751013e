"""Sessions on a real terminal."""

import os
import pty
import signal
import subprocess

import pytest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]


@pytest.fixture
def terminal(tmux_class, tmp_path):
    with tmux_class(tmp_path / "tmux") as opened:
        yield opened


@pytest.fixture
def env(claude_vm):
    return claude_vm.env | {"TERM": "tmux-256color", "COLORTERM": "truecolor", "LANG": "C.UTF-8"}


def test_an_interactive_shell_follows_the_window_and_gives_back_a_sane_terminal(claude_vm, terminal, env):
    before = terminal.modes()
    terminal.run([claude_vm.program, "shell"], cwd=claude_vm.project, env=env)
    terminal.wait_for("@claude-vm-")
    terminal.type("stty size; echo first")
    assert "30 100" in terminal.wait_for("first", count=2)
    terminal.resize(120, 40)
    terminal.type("stty size; echo second")
    assert "40 120" in terminal.wait_for("second", count=2)
    terminal.type("echo begun_$((1 + 1)); sleep 600; echo status=$?")
    terminal.wait_for("begun_2")
    terminal.press("C-c")
    terminal.type("echo alive; printenv TERM COLORTERM LANG")
    screen = terminal.wait_for("C.UTF-8")
    assert "tmux-256color" in screen
    assert "truecolor" in screen
    assert "status=0" not in screen
    terminal.type("exit 3")
    terminal.wait_for("host>", count=2)
    terminal.type("echo status=$?")
    terminal.wait_for("status=3")
    assert terminal.modes() == before


def test_ctrl_z_belongs_to_the_guests_shell(claude_vm, terminal, env):
    terminal.run([claude_vm.program, "shell"], cwd=claude_vm.project, env=env)
    terminal.wait_for("@claude-vm-")
    terminal.type("sh -c 'echo begun_$((1 + 1)); exec sleep 600'")
    terminal.wait_for("begun_2")
    terminal.press("C-z")
    terminal.type("jobs")
    assert "Stopped" in terminal.wait_for("Stopped")
    terminal.type("kill -9 %1; disown %1; exit 0")
    terminal.wait_for("host>", count=2)


def test_a_vm_that_dies_in_a_full_screen_program_leaves_a_usable_terminal(claude_vm, terminal, env):
    before = terminal.modes()
    modes_on = r"\033[?1049h\033[?1000h\033[?1006h\033[?2004h\033[?25l\033[?1h\033[2J"
    program = rf"printf '{modes_on}full''\040screen'; sleep 600"
    terminal.run([claude_vm.program, "shell", program], cwd=claude_vm.project, env=env)
    terminal.wait_for("full screen")
    modes = "#{alternate_on} #{mouse_any_flag} #{cursor_flag} #{keypad_cursor_flag}"
    assert terminal.format(modes) == "1 1 0 1"
    (vm,) = claude_vm.vm_pids()
    os.kill(vm, signal.SIGKILL)
    terminal.wait_for("vm-died")
    terminal.type("echo back")
    terminal.wait_for("back", count=2)
    assert terminal.format(modes) == "0 0 1 0"
    assert terminal.modes() == before


def test_a_terminal_type_that_the_guest_lacks_comes_with_its_description(claude_vm, terminal, env, tmp_path):
    source = subprocess.run(["infocmp", "xterm-256color"], capture_output=True, text=True, check=True).stdout
    entry = "cvm-test|a terminal that no guest has,\n" + "".join(
        line for line in source.splitlines(keepends=True) if line.startswith("\t")
    )
    (tmp_path / "cvm.ti").write_text(entry)
    subprocess.run(["tic", "-x", "-o", tmp_path / "terminfo", tmp_path / "cvm.ti"], check=True)
    special = env | {"TERM": "cvm-test", "TERMINFO": str(tmp_path / "terminfo")}
    terminal.run(
        [claude_vm.program, "shell", "tput colors; tput longname"], cwd=claude_vm.project, env=special
    )
    screen = terminal.wait_for("a terminal that no guest has")
    assert "256" in screen


def test_a_locale_that_the_guest_lacks_becomes_c_utf_8(claude_vm, terminal, env):
    foreign = env | {"LANG": "xx_YY.UTF-8", "LC_ALL": "xx_YY.UTF-8"}
    script = "locale 2>&1 | grep -c 'Cannot set' ; python3 -c 'print(chr(233), \"prin\" + \"ted\")'"
    terminal.run([claude_vm.program, "shell", script], cwd=claude_vm.project, env=foreign)
    screen = terminal.wait_for("printed")
    assert "é printed" in screen
    assert "\n0\n" in screen


def test_a_terminal_as_stdin_and_a_pipe_as_stdout_give_end_of_input_at_once(claude_vm):
    master, slave = pty.openpty()
    try:
        session = claude_vm.popen(
            "shell",
            "--",
            "sh",
            "-c",
            "test -t 0 || echo no terminal; cat; echo end",
            stdin=slave,
            stdout=subprocess.PIPE,
        )
        assert session.stdout.read() == b"no terminal\nend\n"
        assert session.wait(30) == 0
        session.stdout.close()
    finally:
        os.close(master)
        os.close(slave)


def test_without_a_template_a_terminal_is_asked_and_a_script_is_told(installation, terminal, env, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = installation.run("shell", "true", cwd=elsewhere)
    assert done.returncode == 125
    assert b"claude-vm setup" in done.stderr
    terminal.run([installation.program, "shell", "true"], cwd=elsewhere, env=env)
    terminal.wait_for("[y/N]")
    terminal.type("n")
    terminal.wait_for("host>", count=2)
