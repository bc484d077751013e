"""The journal: what a dead supervisor's successor can know."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from claude_vm.drivers.api import Access
from claude_vm.supervisor.core.keys import MountKey, PoolKey
from claude_vm.supervisor.daemon.state.journal import KEPT_ROWS, WARM, Journal
from claude_vm.supervisor.daemon.state.records import JournaledSession

KEY = PoolKey(
    driver="qemu",
    template="t",
    generation="g",
    cpus=2,
    memory_mib=512,
    disk_gib=8,
    mounts=(MountKey(host="/odd \udcff", guest="/p", writable=True),),
)
ACCESS = Access("127.0.0.1", 2222, "u", "/h", "ssh-ed25519 AAAA", Path("/k\udcff"), restored=True)
SESSION = JournaledSession("a1", "/p", "sleep", pty=True, created_at=1.5, publish=("8080:80", "auto"))


def effects(journal):
    """How many rows there are, and the instances of the open ones."""
    count = journal._connection.execute("SELECT count(*) FROM effects").fetchone()[0]
    unended = journal._connection.execute("SELECT instance_id FROM effects WHERE outcome IS NULL").fetchall()
    return count, unended


def open_journal(path, boot="boot-1"):
    return Journal.open(path, boot)


def test_an_instance_is_left_until_it_is_forgotten(tmp_path):
    path = tmp_path / "journal.db"
    with open_journal(path) as (journal, remark):
        row = journal.begin(instance_id="i-1", driver="qemu", kind="clone")
        journal.end(row, "CloneDone")
        journal.begin(instance_id="i-2", driver="qemu", kind="clone")
        journal.forget("i-2")
    assert remark == ""
    with open_journal(path) as (journal, _):
        (left,) = journal.left_instances()
    assert (left.instance_id, left.driver, left.state, left.same_boot) == ("i-1", "qemu", "clone", True)


def test_rows_of_another_boot_are_told_apart(tmp_path):
    with open_journal(tmp_path / "j.db", "boot-1") as (journal, _):
        journal.begin(instance_id="i-1", driver="qemu", kind="start")
    with open_journal(tmp_path / "j.db", "boot-2") as (journal, _):
        assert [left.same_boot for left in journal.left_instances()] == [False]


def test_a_row_survives_kill_9_right_after_begin(tmp_path):
    path = tmp_path / "journal.db"
    program = (
        "import os, sys, pathlib, time\n"
        "from claude_vm.supervisor.daemon.state.journal import Journal\n"
        "with Journal.open(pathlib.Path(sys.argv[1]), 'b') as (journal, _):\n"
        "    journal.begin(instance_id='i-1', driver='qemu', kind='clone')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, path], check=False)
    assert ended.returncode == -signal.SIGKILL
    with open_journal(path, "b") as (journal, _):
        assert [left.instance_id for left in journal.left_instances()] == ["i-1"]


@pytest.mark.parametrize("junk", [b"not a database at all", b"", b"SQLite format 3\x00" + os.urandom(4096)])
def test_a_damaged_journal_is_kept_aside_and_replaced(tmp_path, junk):
    path = tmp_path / "journal.db"
    path.write_bytes(junk)
    with open_journal(path) as (journal, remark):
        journal.begin(instance_id="i-1", driver="qemu", kind="clone")
    aside = list(tmp_path.glob("journal.db.damaged-*"))
    if junk:
        assert "damaged" in remark
        assert aside[0].read_bytes() == junk
    else:  # an empty file is what a full disk leaves; there is nothing in it to keep
        assert remark == ""
        assert aside == []


@pytest.mark.parametrize("when", ["opening", "checkpoint"])
def test_old_ended_rows_are_dropped_and_open_ones_kept(tmp_path, when):
    path = tmp_path / "journal.db"
    with open_journal(path) as (journal, _):
        journal.begin(instance_id="i-open", driver="qemu", kind="clone")
        journal._connection.execute("BEGIN")
        for number in range(KEPT_ROWS + 50):
            journal._connection.execute(
                "INSERT INTO effects (boot_id, at, instance_id, driver, kind, outcome)"
                " VALUES ('b', 0, ?, 'q', 'c', 'x')",
                (f"i-{number}",),
            )
        journal._connection.execute("COMMIT")
        if when == "checkpoint":
            journal.checkpoint()
            count, unended = effects(journal)
    if when == "opening":
        with open_journal(path) as (journal, _):
            count, unended = effects(journal)
    assert count <= KEPT_ROWS + 1
    assert unended == [("i-open",)]


def test_each_session_has_a_lock_of_its_own_on_a_repository(tmp_path):
    with open_journal(tmp_path / "j.db") as (journal, _):
        journal.lock_worktrees("/repo", "s1")
        journal.lock_worktrees("/repo", "s2")
        journal.unlock_worktrees("/repo", "s1")
        assert journal.locked_repositories() == [("/repo", "s2")]
        journal.unlock_worktrees("/repo", "s2")
        assert journal.locked_repositories() == []


def test_a_checkpoint_runs_beside_an_open_journal(tmp_path):
    path = tmp_path / "journal.db"
    with open_journal(path) as (journal, _):
        for number in range(100):
            journal.begin(instance_id=f"i-{number}", driver="qemu", kind="clone")
        before = path.stat().st_size
        journal.checkpoint()
        assert path.stat().st_size > before
        journal.begin(instance_id="i-after", driver="qemu", kind="clone")
        assert len(journal.left_instances()) == 101


def test_what_is_needed_to_go_on_with_an_instance_comes_back_as_it_was(tmp_path):
    path = tmp_path / "journal.db"
    with open_journal(path) as (journal, _):
        journal.begin(instance_id="i-1", driver="qemu", kind="clone", key=KEY)
        journal.begin(instance_id="i-1", driver="qemu", kind="start")
        journal.note_access("i-1", ACCESS)
        journal.note_warm("i-1")
    with open_journal(path) as (journal, _):
        (left,) = journal.left_instances()
    assert (left.key, left.access, left.state, left.session) == (KEY, ACCESS, WARM, None)
    assert left.made_at > 0


def test_an_instance_is_no_longer_warm_from_the_moment_a_session_is_about_to_run(tmp_path):
    with open_journal(tmp_path / "j.db") as (journal, _):
        journal.begin(instance_id="i-1", driver="qemu", kind="clone", key=KEY)
        journal.note_warm("i-1")
        journal.begin(instance_id="i-1", driver="qemu", kind="run", session=SESSION)
        (left,) = journal.left_instances()
        assert (left.state, left.session) == ("run", None)
        journal.note_started("a1")
        (left,) = journal.left_instances()
        assert (left.state, left.session) == ("run", SESSION)


def test_an_instance_and_its_session_are_forgotten_together(tmp_path):
    with open_journal(tmp_path / "j.db") as (journal, _):
        journal.begin(instance_id="i-1", driver="qemu", kind="run", session=SESSION)
        journal.note_started("a1")
        journal.forget("i-1")
        journal.begin(instance_id="i-1", driver="qemu", kind="delete")
        assert [left.session for left in journal.left_instances()] == [None]


def test_a_project_whose_name_is_no_text_can_be_written(tmp_path):
    session = JournaledSession(
        session_id="a1", project="/\udcff", command_text="\ud800", pty=False, created_at=1.0
    )
    with open_journal(tmp_path / "j.db") as (journal, _):
        journal.begin(instance_id="i-1", driver="qemu", kind="run", session=session)
        journal.note_started("a1")
        (left,) = journal.left_instances()
    assert (left.session.project, left.session.command_text) == ("/?", "?")


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"driver": 1}', "null"])
def test_a_key_that_cannot_be_read_is_none_and_stops_nobody(tmp_path, damage):
    with open_journal(tmp_path / "j.db") as (journal, _):
        journal.begin(instance_id="i-1", driver="qemu", kind="clone", key=KEY)
        journal._connection.execute("UPDATE instances SET key=?, access=?", (damage, damage))
        (left,) = journal.left_instances()
    assert (left.key, left.access) == (None, None)


@pytest.mark.parametrize("end", ["killed", "closed"])
@pytest.mark.parametrize("closed_for_us", [False, True])
def test_a_copy_has_what_the_journal_has_and_changes_nothing_of_it(tmp_path, end, closed_for_us):
    path = tmp_path / "journal.db"
    program = (
        "import os, sys, pathlib\n"
        "from claude_vm.supervisor.daemon.state.journal import Journal\n"
        "with Journal.open(pathlib.Path(sys.argv[1]), 'b') as (journal, _):\n"
        "    journal.begin(instance_id='i-1', driver='qemu', kind='clone')\n"
        f"    if {end == 'killed'}: os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", program, path], check=False)
    if closed_for_us:
        for name in tmp_path.iterdir():
            name.chmod(0o400)
        tmp_path.chmod(0o500)
    try:
        with Journal.copied(path, "b") as (copy, is_whole):
            assert is_whole == (not closed_for_us or end == "closed" or os.geteuid() == 0)
            assert [left.instance_id for left in copy.left_instances()] == (["i-1"] if is_whole else [])
            copy.begin(instance_id="i-2", driver="qemu", kind="clone")
    finally:
        tmp_path.chmod(0o700)
        for name in tmp_path.iterdir():
            name.chmod(0o600)
    with open_journal(path, "b") as (journal, remark):
        assert remark == ""
        assert [left.instance_id for left in journal.left_instances()] == ["i-1"]


def test_a_copy_of_what_is_no_journal_is_empty_and_says_so(tmp_path):
    path = tmp_path / "journal.db"
    with Journal.copied(path, "b") as (copy, is_whole):
        assert is_whole
        assert copy.left_instances() == []
    path.write_bytes(b"not a database at all")
    with Journal.copied(path, "b") as (copy, is_whole):
        assert not is_whole
        assert copy.left_instances() == []
    assert path.read_bytes() == b"not a database at all"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anything")
def test_a_journal_that_is_closed_for_us_is_an_error_with_a_number_and_stays(tmp_path):
    path = tmp_path / "journal.db"
    with open_journal(path):
        pass
    path.chmod(0o400)
    with pytest.raises(PermissionError), open_journal(path):
        pass
    assert not list(tmp_path.glob("*damaged*"))


def test_what_the_system_says_is_told_where_sqlite_knows_only_an_input_or_output_error(tmp_path):
    program = (
        "import errno, pathlib, resource, sys\n"
        "from claude_vm.supervisor.daemon.state.journal import Journal\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "try:\n"
        "    with Journal.open(pathlib.Path(sys.argv[1]), 'b'): pass\n"
        "except OSError as error:\n"
        "    print(errno.errorcode[error.errno])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "journal.db"], check=True, capture_output=True, text=True
    )
    assert done.stdout == "EFBIG\n"
