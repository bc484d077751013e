"""What is said when a session has ended and something goes with its VM."""

import pytest

from claude_vm.supervisor.daemon.sessions.end_notes import end_notes
from claude_vm.supervisor.ssh.remaining import Remaining

HINT = b"\x1b[2m\r\nResume this session with:\r\nclaude --resume 129b3ed3-7526\r\n\x1b[22m"


def test_mostly_nothing_is_said():
    assert not list(end_notes(Remaining(), b"hello\r\n"))


@pytest.mark.parametrize(
    ("remaining", "told"),
    [
        (Remaining(1, ("sleep 100",)), "1 process still at work ended with the VM: sleep 100"),
        (Remaining(2, ("a", "b")), "2 processes still at work ended with the VM: a, b"),
        (Remaining(9, tuple("abcdefgh")), "9 processes still at work ended with the VM: a, b, c, 6 more"),
        (Remaining(5, ()), "5 processes still at work ended with the VM: 5 more"),
        (Remaining(1, ("x" * 200,)), f"1 process still at work ended with the VM: {'x' * 59}…"),
    ],
)
def test_what_still_worked_is_named(remaining, told):
    assert list(end_notes(remaining, b"")) == [f"claude-vm: {told}"]


def test_a_conversation_that_cannot_be_resumed_is_told_where_claude_says_it_can():
    (line,) = end_notes(Remaining(), HINT)
    assert "--resume" in line
