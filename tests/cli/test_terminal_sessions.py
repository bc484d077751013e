import json
import os
import signal
import subprocess
import termios

import pexpect
import pytest

RESET = b"\x1b[?25h\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[<1u\x1b[?1049l"


def modes(child):
    """The terminal's modes, and whether they are cooked."""
    mode = termios.tcgetattr(child.child_fd)
    return bool(mode[3] & termios.ICANON), bool(mode[3] & termios.ECHO), bool(mode[1] & termios.OPOST)


COOKED = (True, True, True)
RAW = (False, False, False)


def end_of(child):
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus if child.exitstatus is not None else -child.signalstatus


def test_keys_reach_the_guest_unchanged_and_the_terminal_is_given_back(scripted):
    child = scripted.spawn("keys")
    child.expect_exact("ready")
    assert modes(child) == RAW
    for key in (b"\x03", b"\x1a", b"\x1c", b"\x04", b"\r", b"\x13", b"\x11", b"\x7f", b"\x16"):
        child.send(key)
        child.expect_exact(key.hex().encode() + b"\r\n")
    child.send("q")
    child.expect_exact("71\r\n")
    child.expect(pexpect.EOF)
    assert modes(child) == COOKED
    child.close()
    assert child.exitstatus == 3


def test_a_resize_arrives(scripted):
    child = scripted.spawn("controls", "pty", dimensions=(24, 80))
    child.expect_exact("Size(rows=24, columns=80")
    child.setwinsize(50, 132)
    child.expect_exact("Size(rows=50, columns=132")
    child.kill(signal.SIGTERM)
    assert end_of(child) == -signal.SIGTERM


def test_a_finished_full_screen_program_leaves_nothing_behind(scripted):
    child = scripted.spawn("full-screen", "live")
    child.expect_exact("full screen")
    child.send("x")
    child.expect(pexpect.EOF)
    assert child.before == RESET
    assert modes(child) == COOKED
    child.close()
    assert child.exitstatus == 5


def test_a_daemon_that_dies_beneath_a_full_screen_program_leaves_a_sane_terminal(scripted):
    child = scripted.spawn("full-screen", "die")
    child.expect_exact("full screen")
    child.send("x")
    child.expect(pexpect.EOF)
    assert child.before.startswith(RESET + b"claude-vm: the daemon ended during the session")
    assert modes(child) == COOKED
    child.close()
    assert child.exitstatus == 125


def test_a_killed_daemon_leaves_a_sane_terminal(scripted):
    child = scripted.spawn("full-screen", "live")
    child.expect_exact("full screen")
    scripted.server.kill()
    child.expect(pexpect.EOF)
    assert child.before.startswith(RESET + b"claude-vm: ")
    assert modes(child) == COOKED
    child.close()
    assert child.exitstatus == 125


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_killed_client_restores_the_terminal_before_it_dies(scripted, number):
    child = scripted.spawn("full-screen", "live")
    child.expect_exact("full screen")
    child.kill(number)
    child.expect(pexpect.EOF)
    assert child.before == RESET
    assert modes(child) == COOKED
    child.close()
    assert child.signalstatus == number


def test_raw_mode_comes_back_after_the_client_was_stopped(scripted):
    child = scripted.spawn("controls", "pty")
    child.expect_exact("Size(")
    child.kill(signal.SIGSTOP)
    _, status = os.waitpid(child.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    cooked = termios.tcgetattr(child.child_fd)
    cooked[3] |= termios.ICANON | termios.ECHO
    termios.tcsetattr(child.child_fd, termios.TCSANOW, cooked)
    child.kill(signal.SIGCONT)
    child.expect_exact("Size(")
    assert modes(child) == RAW
    child.kill(signal.SIGTERM)
    end_of(child)


def test_ctrl_c_on_a_cooked_terminal_is_a_signal_for_the_guest(scripted):
    child = scripted.spawn("controls", "pipes")
    child.expect_exact("ready")
    assert modes(child) == COOKED
    child.sendintr()
    child.expect_exact("Signal(name='INT')")
    child.sendintr()
    child.expect_exact("Signal(name='INT')")
    child.kill(signal.SIGTERM)
    end_of(child)


def test_a_terminal_whose_output_goes_to_a_pipe_is_at_its_end_at_once(scripted):
    child = pexpect.spawn(
        "sh",
        ["-c", 'x=$("$0" "$@"); echo "status $? [$x]"', *scripted.command, "echo"],
        env=scripted.environ,
        timeout=20,
    )
    child.expect_exact("end of input")
    child.expect_exact("status 0 []")
    child.close()


@pytest.mark.parametrize(
    ("typed", "answer"), [("y\n", "'y'"), ("\n", "''"), ("\x04", "None"), ("n o \n", "'n o '")]
)
def test_a_question_is_answered_by_a_line_of_the_terminal(scripted, typed, answer):
    child = scripted.spawn("ask")
    child.expect_exact("Delete everything? [y/N] ")
    child.send(typed)
    child.expect_exact(f"answer: {answer}\r\n")
    assert end_of(child) == 0


def test_progress_on_a_terminal_rewrites_its_line(scripted):
    child = scripted.spawn("progress")
    child.expect(pexpect.EOF)
    assert child.before == b"phase 0\r\x1b[Kphase 1\r\x1b[Kphase 2\r\x1b[Kdone\r\n"
    child.close()


def test_progress_is_cut_to_the_width_of_the_terminal_and_plain_on_a_dumb_one(scripted):
    narrow = scripted.spawn("progress", dimensions=(24, 5))
    narrow.expect(pexpect.EOF)
    assert narrow.before.startswith(b"phas\r\x1b[K")
    narrow.close()
    dumb = scripted.spawn("progress", environ={"TERM": "dumb"})
    dumb.expect(pexpect.EOF)
    assert dumb.before == b"phase 0\r\nphase 1\r\nphase 2\r\ndone\r\n"
    dumb.close()


def described(child):
    child.expect(rb"(\{.*\})")
    told = json.loads(child.match[1])
    assert end_of(child) == 0
    return told


def test_the_terminals_size_and_name_are_told(scripted):
    told = described(scripted.spawn("describe", dimensions=(33, 101)))
    assert told["tty"] == [True, True, True]
    assert told["size"] == [33, 101]
    assert (told["term"], told["terminfo"]) == ("xterm", None)


@pytest.mark.parametrize("layout", ["w", "77"])
def test_a_terminal_that_guests_may_not_know_brings_its_description(scripted, home, layout):
    folder = home / "terminfo" / layout
    folder.mkdir(parents=True)
    (folder / "weird-term").write_bytes(b"\x1a\x01" + bytes(1000))
    environ = {"TERM": "weird-term", "TERMINFO": str(home / "terminfo")}
    assert described(scripted.spawn("describe", environ=environ))["terminfo"] == 1002
    (folder / "weird-term").write_bytes(bytes(40_000))
    assert described(scripted.spawn("describe", environ=environ))["terminfo"] is None


@pytest.mark.parametrize("term", ["../../etc/passwd", "", ".", "no-such-terminal"])
def test_an_odd_terminal_name_brings_nothing(scripted, term):
    told = described(scripted.spawn("describe", environ={"TERM": term}))
    assert (told["term"], told["terminfo"]) == (term, None)


def test_a_note_on_top_of_a_full_screen_program_comes_after_its_screen(scripted):
    child = scripted.spawn("crash")
    child.expect(pexpect.EOF)
    assert child.before == b"\x1b[?1049hfull screen\x1b[?1049lthe VM died\r\n  because\r\n"
    child.close()
    assert child.exitstatus == 125


def test_a_broken_pipe_of_notes_alone_is_no_failure(scripted):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as stderr:
        client = scripted.popen("status", "7", stderr=stderr, stdin=subprocess.DEVNULL)
        assert client.wait(20) == 7
