"""What is kept of ended sessions."""

import pytest

from claude_vm.supervisor.core.effects import EndSession
from claude_vm.supervisor.core.keys import MountKey, PoolKey
from claude_vm.supervisor.daemon.sessions.plan import SessionPlan
from claude_vm.supervisor.daemon.sessions.session import EndedSession
from claude_vm.supervisor.daemon.sessions.sessions import EndedSessions
from claude_vm.supervisor.ssh.process import Pty

MOUNTS = (MountKey("/p \udcff", "/q", True),)
KEY = PoolKey("sim", "t", "g1", cpus=2, memory_mib=8192, disk_gib=20, mounts=MOUNTS)


def ended(name, **changes):
    plan = SessionPlan(key=KEY, project="/p \udcff", command_text="make\u2009test", launch=None, **changes)
    return EndedSession(
        session_id=name,
        plan=plan,
        created_at=1_000_000.25,
        phase="delete",
        source="made",
        marks=[("requested", 1.5), ("deleted", 2.5)],
        outcome=EndSession(session_id=name, status=7),
    )


@pytest.mark.parametrize("session", [ended("a"), ended("b", pty=Pty("xterm", 24, 80))])
def test_a_session_comes_back_as_it_was(session):
    kept = EndedSessions()
    kept.add(session)
    assert list(kept) == [session]


def test_the_oldest_goes_when_there_are_too_many():
    kept = EndedSessions(limit=2)
    for name in "abc":
        kept.add(ended(name))
    assert [session.session_id for session in kept] == ["b", "c"]
