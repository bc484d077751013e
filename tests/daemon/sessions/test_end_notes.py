"""What is said when a session has ended and something goes with its VM."""

from pathlib import Path

import pytest

from claude_vm.supervisor.core.effects import EndSession
from claude_vm.supervisor.daemon.sessions.end_notes import end_notes, failure_notes
from claude_vm.supervisor.ssh.remaining import RemainingWork

HINT = b"\x1b[2m\r\nResume this session with:\r\nclaude --resume 129b3ed3-7526\r\n\x1b[22m"


def test_mostly_nothing_is_said():
    assert not list(end_notes(RemainingWork(), b"hello\r\n"))


@pytest.mark.parametrize(
    ("remaining", "told"),
    [
        (RemainingWork(1, ("sleep 100",)), "1 process still at work ended with the VM: sleep 100"),
        (RemainingWork(2, ("a", "b")), "2 processes still at work ended with the VM: a, b"),
        (RemainingWork(9, tuple("abcdefgh")), "9 processes still at work ended with the VM: a, b, c, 6 more"),
        (RemainingWork(5, ()), "5 processes still at work ended with the VM: 5 more"),
        (RemainingWork(1, ("x" * 200,)), f"1 process still at work ended with the VM: {'x' * 59}…"),
    ],
)
def test_what_still_worked_is_named(remaining, told):
    assert list(end_notes(remaining, b"")) == [f"claude-vm: {told}"]


def test_a_conversation_that_cannot_be_resumed_is_told_where_claude_says_it_can():
    (line,) = end_notes(RemainingWork(), HINT)
    assert "--resume" in line


@pytest.mark.parametrize(
    ("code", "step"), [("vm-died", "see /h/logs/daemon.log"), ("journal-failed", "room in /h"), ("other", "")]
)
def test_a_session_that_failed_is_told_with_what_to_do(code, step):
    outcome = EndSession(session_id="a1", status=125, code=code, message="it went wrong", detail=("why",))
    first, *beneath = failure_notes(outcome, Path("/h"))
    assert (first, beneath[0]) == (f"claude-vm: it went wrong [{code}]", "why")
    assert step in beneath[-1] if step else len(beneath) == 1
    assert failure_notes(EndSession(session_id="a1", status=3), Path("/h")) == ()
