"""What a queued session is said to wait for."""

import pytest
from claude_vm_tests_user import sleeper

from claude_vm.supervisor.core.instance import InstanceState
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.core.session import SessionState
from claude_vm.supervisor.core.views import InstanceView, SessionView
from claude_vm.supervisor.daemon.sessions.start_notes import waits_for

KEY = PoolKey("sim", "t", "g1", cpus=2, memory_mib=1024, disk_gib=20)


def machine(session="", state=InstanceState.RUNNING):
    return InstanceView("i", state, 0.0, KEY, session, 0, 0.0)


def queued(name, at):
    return SessionView(name, SessionState.QUEUED, at, at, KEY, "", None, "")


IN_SESSION = machine("s")
READY = machine(state=InstanceState.WARM)
GOING = machine(state=InstanceState.DELETING)


@pytest.mark.parametrize(
    ("instances", "waiting", "says"),
    [
        ([IN_SESSION] * 2, ["a"], "waits for a place, 2 of 2 VMs are in use (2 by sessions)"),
        ([IN_SESSION, READY], ["a"], "2 of 2 VMs are in use (1 by sessions, 1 ready or being made ready)"),
        ([IN_SESSION, GOING], ["a"], "2 of 2 VMs are in use (1 by sessions, 1 going)"),
        ([IN_SESSION] * 2, ["b", "c", "a"], "(2 by sessions); 2 session(s) are ahead of it"),
        ([IN_SESSION], ["a"], "its VM is made next"),
        ([IN_SESSION, machine(state=InstanceState.LEAKED)], ["a"], "its VM is made next"),
    ],
)
def test_a_queued_session_is_told_who_has_the_places(instances, waiting, says):
    sessions = [queued(name, at) for at, name in enumerate(waiting)]
    told = waits_for("a", instances, sessions, 2)
    assert told.startswith("queued: ")
    assert told.endswith(says)


def test_the_user_reads_it(ready):
    (ready.home / ".claude-vm.toml").write_text("[pool]\nsize = 0\nmax_instances = 1\n")
    first = sleeper(ready)
    second = ready.popen("-v", "shell", "true")
    line = next(line for line in second.stderr if b"queued" in line)
    assert b"queued: waits for a place, 1 of 1 VMs are in use (1 by sessions) (at " in line
    first.terminate()
    first.communicate()
    assert second.wait(30) == 0
