"""Damaged messages for a real daemon. `tests/wire` has those whose answer is known."""

import json
import os

from claude_vm_tests_malformed import bombard, first_message
from claude_vm_tests_user import sleeper

COUNT = 3000 if "CHAOS_KILLS" in os.environ else 300


def test_damaged_messages_are_answered_or_cut_off_and_the_daemon_goes_on(user):
    session = sleeper(user)  # an idle daemon would make room for a version that it does not know
    daemon = user.daemon_pid()
    message = first_message(user.run)
    assert b'"ps"' in message
    log = user.data / "logs" / "daemon.log"
    before = log.stat().st_size
    silent = bombard(user.data, message, COUNT, seed=1)
    print(f"malformed inputs {COUNT:,}: without an answer {silent}")  # noqa: T201
    assert silent == 0
    assert user.daemon_pid() == daemon
    # What the protocol forbids is told with where it was seen; anything else would be a bug of ours.
    kinds = {
        json.loads(line).get("kind") for line in log.read_bytes()[before:].splitlines() if line[:1] == b"{"
    }
    assert kinds - {None} <= {"ProtocolError", "EndOfStream", "BrokenResourceError"}
    assert session.poll() is None
    assert user.run("shell", "exit 3").returncode == 3
    assert user.run("stop", "--all").returncode == 0
    assert user.survey.settle() == []
