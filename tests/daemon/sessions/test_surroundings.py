"""What is done around a session: before it asks for a VM, and after its end, whoever began it."""

import sqlite3
import time

import anyio
import msgspec
import pytest
from claude_vm_tests_memory import key

from claude_vm.supervisor.core.effects import EndSession
from claude_vm.supervisor.core.keys import MountKey
from claude_vm.supervisor.daemon.errors import CommandError
from claude_vm.supervisor.daemon.sessions import surroundings as module
from claude_vm.supervisor.daemon.sessions.plan import SessionPlan
from claude_vm.supervisor.daemon.sessions.scanning import Scanner
from claude_vm.supervisor.daemon.sessions.session import Session
from claude_vm.supervisor.daemon.sessions.sessions import Sessions
from claude_vm.supervisor.daemon.sessions.surroundings import Surroundings
from claude_vm.supervisor.daemon.state.journal import Journal
from claude_vm.supervisor.daemon.state.records import JournaledSession, LeftInstance
from claude_vm.supervisor.daemon.state.reports import Reports

pytestmark = pytest.mark.anyio

MOUNTS = (MountKey(host="/p", guest="/p", writable=True),)
PLAN = SessionPlan(
    key=msgspec.structs.replace(key(), mounts=MOUNTS),
    project="/p",
    command_text="x",
    launch=None,
    repository="/one",
)


class Scene:
    """Surroundings over a real journal; `calls` are those of the worktrees' locks."""

    def __init__(self, journal, folder, calls):
        self.journal = journal
        self.calls = calls
        self.scanner = Scanner(Reports(folder))
        self.surroundings = Surroundings(journal, "daemon", self.scanner)

    def pending(self):
        return [report.session for report in self.scanner.reports.of("/p")]


@pytest.fixture
def scene(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(module, "lock_siblings", lambda path, *_: calls.append(("lock", str(path))))
    monkeypatch.setattr(module, "release_stale", lambda path, _: calls.append(("release", str(path))))
    with Journal.open(tmp_path / "journal.db", "boot") as (journal, _):
        yield Scene(journal, tmp_path, calls)


def started(name="a1", **changes):
    session = Session(name, msgspec.structs.replace(PLAN, **changes))
    session.mark("start")
    return session


async def lived(scene, session):
    """Let a session live from its beginning to its end."""
    async with anyio.create_task_group() as tasks:
        sessions = Sessions(tasks, scene.surroundings.around)
        await sessions.begin(session, lambda: scene.calls.append("request"))
        assert list(sessions.running) == [session.session_id]
        session.finish(EndSession(session_id=session.session_id, status=0))
        await session.over.wait()
        assert ([ended.session_id for ended in sessions.ended], sessions.running) == (
            [session.session_id],
            {},
        )


async def test_worktrees_are_locked_before_the_core_is_asked_and_released_after_the_last_session(scene):
    scene.journal.lock_worktrees("/one", "another")
    await lived(scene, started("a1"))
    assert scene.calls == [("lock", "/one"), "request"]
    scene.journal.unlock_worktrees("/one", "another")
    scene.calls.clear()
    await lived(scene, started("a2"))
    assert scene.calls == [("lock", "/one"), "request", ("release", "/one")]
    assert scene.journal.locked_repositories() == []
    assert scene.pending() == ["a1", "a2"]


async def test_a_session_that_never_began_is_not_looked_at(scene):
    await lived(scene, Session("a1", PLAN))
    assert scene.pending() == []


async def test_what_cannot_be_done_before_is_told_to_who_asked_and_nothing_is_left(scene):
    scene.journal._connection.execute("DROP TABLE worktree_locks")
    async with anyio.create_task_group() as tasks:
        sessions = Sessions(tasks, scene.surroundings.around)
        with pytest.raises(CommandError) as caught:
            await sessions.begin(Session("a1", PLAN), lambda: scene.calls.append("request"))
    assert caught.value.code == "journal-failed"
    assert (sessions.running, list(sessions.ended), scene.calls) == ({}, [], [])


async def test_a_session_that_the_core_refuses_ends_no_other_one_and_nobody_waits_for_it(scene):
    async with anyio.create_task_group() as tasks:
        sessions = Sessions(tasks, scene.surroundings.around)
        other, refused = started("a1"), Session("a2", PLAN)
        await sessions.begin(other, list)
        with pytest.raises(ZeroDivisionError):
            await sessions.begin(refused, lambda: 1 / 0)
        assert (list(sessions.running), refused.over.is_set()) == (["a1"], True)
        assert scene.journal.locked_repositories() == [("/one", "a1")]
        other.finish(EndSession(session_id="a1", status=0))
        await other.over.wait()


async def test_a_bug_after_a_session_ends_no_other_one_and_nobody_waits_for_it(scene, monkeypatch):
    async with anyio.create_task_group() as tasks:
        sessions = Sessions(tasks, scene.surroundings.around)
        broken, other = started("a1"), started("a2")
        monkeypatch.setattr(broken, "kept", lambda: 1 / 0)
        for session in (broken, other):
            await sessions.begin(session, list)
        broken.finish(EndSession(session_id="a1", status=0))
        await broken.over.wait()
        assert list(sessions.running) == ["a2"]
        other.finish(EndSession(session_id="a2", status=0))
        await other.over.wait()
        assert [ended.session_id for ended in sessions.ended] == ["a2"]


async def test_a_session_is_seen_by_others_from_the_moment_it_begins(scene, monkeypatch):
    seen = []

    async def wait_for_locks(self, session):
        seen.append(list(sessions.running))

    monkeypatch.setattr(Surroundings, "_lock_worktrees", wait_for_locks)
    async with anyio.create_task_group() as tasks:
        sessions = Sessions(tasks, scene.surroundings.around)
        ones = [started("a1"), started("a2")]
        async with anyio.create_task_group() as beginning:
            for one in ones:
                beginning.start_soon(sessions.begin, one, list)
        assert [sorted(names) for names in seen] == [["a1", "a2"]] * 2
        for one in ones:
            one.finish(EndSession(session_id=one.session_id, status=0))


async def test_what_follows_a_session_follows_also_one_that_was_found_while_its_supervisor_ends(scene):
    session = Session(
        "a1", msgspec.structs.replace(PLAN, repository=""), created_at=time.time() - 100, found=True
    )
    scene.journal.lock_worktrees("/one", "a1")
    scene.journal.lock_worktrees("/two", "another")
    async with anyio.create_task_group() as tasks:
        await Sessions(tasks, scene.surroundings.around).begin(session, list)
        session.finish(EndSession(session_id="a1", status=0))
        tasks.cancel_scope.cancel()  # the supervisor ends at that very moment
    assert scene.journal.locked_repositories() == [("/two", "another")]
    assert scene.calls == [("release", "/one")]
    (pending,) = scene.scanner.reports.of("/p")
    assert (pending.session, pending.since, pending.findings) == ("a1", session.created_at, None)


async def test_a_session_that_outlives_its_supervisor_keeps_its_surroundings(scene):
    async with anyio.create_task_group() as tasks:
        await Sessions(tasks, scene.surroundings.around).begin(started(), list)
        tasks.cancel_scope.cancel()
    assert scene.journal.locked_repositories() == [("/one", "a1")]
    assert scene.calls == [("lock", "/one")]
    assert scene.pending() == []


async def test_worktrees_stay_locked_for_the_sessions_that_go_on(scene):
    for repository, session in (("/one", "a1"), ("/one", "gone"), ("/two", "gone"), ("/two", "gone2")):
        scene.journal.lock_worktrees(repository, session)
    await scene.surroundings.settle((), {"a1"})
    assert scene.journal.locked_repositories() == [("/one", "a1")]
    assert scene.calls == [("release", "/two")]


async def test_a_session_whose_vm_died_with_its_supervisor_is_looked_at_too(scene):
    row = JournaledSession(session_id="a1", project="/p", command_text="x", pty=True, created_at=100.0)
    left = LeftInstance("i-1", "qemu", "run", same_boot=False, session=row)
    with_key = msgspec.structs.replace(left, key=PLAN.key)
    await scene.surroundings.settle((left, with_key, msgspec.structs.replace(with_key, session=None)))
    assert scene.pending() == ["a1"]


async def test_a_bug_in_one_step_after_a_session_holds_neither_the_next_step_nor_another_session_up(
    scene, monkeypatch
):
    row = JournaledSession(session_id="a1", project="/p", command_text="x", pty=True, created_at=100.0)
    left = LeftInstance("i-1", "qemu", "run", same_boot=False, key=PLAN.key, session=row)
    scene.journal.lock_worktrees("/one", "a1")
    scene.journal.lock_worktrees("/two", "a2")
    monkeypatch.setattr(scene.scanner, "request", lambda *_: 1 / 0)
    await scene.surroundings.settle((left,))
    assert scene.journal.locked_repositories() == []


async def test_a_journal_that_cannot_be_read_ends_no_session(scene, monkeypatch):
    def fail():
        raise sqlite3.OperationalError("disk I/O error")

    session = started()
    monkeypatch.setattr(scene.journal, "locked_repositories", fail)
    await lived(scene, session)
    assert scene.pending() == ["a1"]
