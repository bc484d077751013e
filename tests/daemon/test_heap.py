"""How long a daemon keeps a client's secrets: see `heap.py`, which is a daemon that looks into itself."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from claude_vm_tests_user import PROGRAM

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def results(ready, tmp_path):
    """What the objects of a daemon refer to after each command, and while a session runs."""
    ready.stop_daemon()
    secret = tmp_path / "secret"
    secret.write_text("canary-4711-not-to-be-kept-by-anybody")
    done = subprocess.run(
        [sys.executable, "-P", Path(__file__).with_name("heap.py"), secret, ready.project, PROGRAM],
        env=ready.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_no_object_of_a_daemon_refers_to_a_clients_secret_once_its_session_has_started(results):
    statuses = {name: status for name, (status, _) in results.items()}
    # Each did what it was meant to: the guest had the key, and what failed did so late.
    assert statuses == {
        "before": 0,
        "session": 0,
        "flags": 3,
        "failed": 125,
        "info": 0,
        "unknown": 125,
        "running": 0,
    }
    assert {name: held for name, (_, held) in results.items() if held} == {}
