"""Journals that former versions left, in files that those versions wrote; see ``journals/README.md``."""

import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from claude_vm_tests_user import wait_until

from claude_vm.drivers.api import Access
from claude_vm.supervisor.core.keys import MountKey, PoolKey
from claude_vm.supervisor.daemon.state.database import NewerSchemaError
from claude_vm.supervisor.daemon.state.journal import RUN, SCHEMA, WARM, Journal
from claude_vm.supervisor.daemon.state.records import JournaledSession

FILES = sorted((Path(__file__).parent / "journals").glob("*.db"))
MOUNT = MountKey(host="/srv/project\udcff", guest="/srv/project", writable=True)
KEY = PoolKey(
    driver="qemu", template="t", generation="g1", cpus=1, memory_mib=512, disk_gib=8, mounts=(MOUNT,)
)
RUNS_IN, READY = "i-00000000aa", "i-00000000bb"


def access(port):
    key = Path("/srv/k\udcff")
    return Access("127.0.0.1", port, "u", "/home/u", "ssh-ed25519 AAAA", key, restored=True)


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def left(request, tmp_path):
    """A copy of the journal that a former version left; its folder has nothing else."""
    (tmp_path / "supervisor").mkdir()
    return Path(shutil.copy(request.param, tmp_path / "supervisor"))


def version(path):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute("PRAGMA user_version").fetchone()[0]


def test_there_is_a_file_of_each_former_schema():
    assert {version(file) for file in FILES} == set(range(1, len(SCHEMA)))


@pytest.mark.parametrize("times", [1, 2])
def test_what_a_former_version_wrote_is_there_and_can_be_gone_on_with(left, times):
    schema = version(left)
    for _ in range(times):
        with Journal.open(left, "boot-1") as (journal, remark):
            assert remark == ""
            found = {one.instance_id: one for one in journal.left_instances()}
            locks = journal.locked_repositories()
            memory = journal.memory()
    assert (version(left), list(left.parent.iterdir())) == (len(SCHEMA), [left])
    assert locks == [("/srv/project/.git", "a1")]
    assert memory == ([(KEY, 321)] if left.stem == "3-memory" else [])
    assert {name: (one.state, one.same_boot) for name, one in found.items()}.items() >= {
        (RUNS_IN, (RUN, True))
    }
    assert set(found) == {RUNS_IN, READY}
    if schema == 1:  # that one knew nothing of how to go on
        assert all(one.key is one.access is one.session is None for one in found.values())
        return
    publish = ("8080:80", "auto") if schema > 2 else ()
    session = JournaledSession("a1", "/srv/project", "sleep", True, 1_764_000_000.0, publish)
    assert (found[RUNS_IN].session, found[READY].session) == (session, None)
    assert (found[RUNS_IN].key, found[RUNS_IN].access) == (KEY, access(1000))
    assert (found[READY].state, found[READY].key, found[READY].access) == (WARM, KEY, access(1001))
    assert found[READY].made_at > 1_764_000_000.0


def test_who_stands_in_for_the_daemon_reads_it_and_leaves_it_as_it_is(left):
    before = left.read_bytes()
    with Journal.copied(left, "boot-1") as (journal, is_whole):
        assert is_whole
        assert {one.instance_id for one in journal.left_instances()} == {RUNS_IN, READY}
        journal.note_memory(KEY, 1)
    assert left.read_bytes() == before


def make_newer(path):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("ALTER TABLE instances ADD COLUMN better TEXT")
        connection.execute(f"PRAGMA user_version={len(SCHEMA) + 1}")


def test_a_journal_of_a_newer_version_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "journal.db"
    with Journal.open(path, "boot-1") as (journal, _):
        journal.begin(instance_id=RUNS_IN, driver="qemu", kind="clone", key=KEY)
    make_newer(path)
    before = path.read_bytes()
    for way in (Journal.open, Journal.copied):
        with (
            pytest.raises(NewerSchemaError, match="was written by a newer claude-vm") as refused,
            way(path, "b"),
        ):
            pass
        assert (refused.value.code, bool(refused.value.hint)) == ("newer-database", True)
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (before, [path])


@pytest.mark.parametrize("words", [("ps",), ("shell", "true")])
def test_no_daemon_starts_on_a_journal_of_a_newer_version_and_the_command_says_why(ready, words):
    ready.stop_daemon()
    path = ready.data / "supervisors/daemon/journal.db"
    make_newer(path)
    before = path.read_bytes()
    done = ready.run(*words)
    line, hint = done.stderr.decode().splitlines()
    assert done.returncode == (1 if words == ("ps",) else 125)
    assert line.startswith(f"claude-vm: {path} was written by a newer claude-vm")
    assert line.endswith("[newer-database]")
    assert "use the newer version" in hint
    assert path.read_bytes() == before


def test_what_a_newer_version_left_of_a_client_is_left_to_that_version(ready):
    folder = ready.data / "supervisors/p1-0a1b2c"
    folder.mkdir()
    path = Path(shutil.copy(FILES[-1], folder / "journal.db"))
    with Journal.open(path, "boot-1"):
        pass
    make_newer(path)
    before = path.read_bytes()
    assert ready.run("ps").returncode == 0
    wait_until(lambda: "supervisor-not-swept" in (ready.data / "logs/daemon.log").read_text())
    assert path.read_bytes() == before


@pytest.fixture
def machine(ready):
    """What the machine of a VM with the session a1 says; there is no daemon any more."""
    ready.stop_daemon()
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("machine.py"), ready.data, RUNS_IN, "a1"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ready.env,
    )  # fmt: skip
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.communicate()


def at_this_machine(journal, machine):
    """Let a journal tell of the VM that is there, and otherwise, and of each record, what it told before."""
    with contextlib.closing(sqlite3.connect(journal)) as connection, connection:
        connection.execute("DELETE FROM instances WHERE instance_id=?", (READY,))
        connection.execute("UPDATE instances SET driver='sim', boot_id=?", (machine["boot_id"],))
        for column in ("key", "access"):
            ((text,),) = connection.execute(f"SELECT {column} FROM instances").fetchall()
            former = json.loads(text)
            now = former | {name: value for name, value in machine[column].items() if name in former}
            connection.execute(f"UPDATE instances SET {column}=?", (json.dumps(now),))


@pytest.mark.parametrize("file", [file for file in FILES if file.stem != "1"], ids=lambda file: file.stem)
def test_a_session_outlives_the_change_of_its_daemon_for_this_version(ready, machine, file):
    journal = ready.data / "supervisors/daemon/journal.db"
    shutil.copy(file, journal)
    at_this_machine(journal, machine)
    (row,) = ready.json("ps")
    assert (row["session"], row["state"], row["source"]) == ("a1", "running", "resumed")
    assert (row["project"], row["command"], row["attached"]) == ("/srv/project", "sleep", False)
    folder = Path(machine["access"]["client_key"]).parent
    assert folder.is_dir()
    stopped = ready.run("stop", "a1")
    assert (stopped.returncode, stopped.stdout) == (0, b"a1\n"), stopped.stderr.decode()
    assert ready.json("ps") == []
    assert not folder.exists()


def test_a_session_whose_vm_is_gone_is_listed_as_ended_and_its_story_says_why(ready):
    ready.stop_daemon()
    shutil.copy(FILES[-1], ready.data / "supervisors/daemon/journal.db")
    (row,) = ready.json("ps", "--all")
    assert (row["session"], row["state"], row["status"], row["command"]) == ("a1", "ended", 125, "sleep")
    (step,) = ready.json("ps", "--story", "a1")["steps"]
    assert step["note"] == "session-lost: its supervisor died, and its VM is gone"
