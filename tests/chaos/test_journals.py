"""A journal that is damaged in any way: nothing is believed that was not written, and nothing crashes."""

import contextlib
import os
import random
import shutil
import sqlite3

import pytest

from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.daemon.state.journal import RUN, WARM, Journal
from claude_vm.supervisor.daemon.state.records import JournaledSession

pytestmark = pytest.mark.timeout(180)

KEY = PoolKey(driver="sim", template="t", generation="g", cpus=1, memory_mib=512, disk_gib=8, mounts=())
SESSION = JournaledSession(session_id="a1", project="/p", command_text="sleep", pty=True, created_at=1.5)
STATES = {"i-warm": {"clone", WARM}, "i-run": {"clone", WARM, RUN}}
ROUNDS = 60


@pytest.fixture
def left(tmp_path):
    """A folder with what a killed supervisor leaves: a database, and a log that is not yet in it."""
    folder = tmp_path / "left"
    folder.mkdir()
    live = tmp_path / "live"
    live.mkdir()
    with Journal.open(live / "journal.db", "boot") as (journal, _):
        journal.begin(instance_id="i-warm", driver="sim", kind="clone", key=KEY)
        journal.checkpoint()
        journal.note_warm("i-warm")
        journal.begin(instance_id="i-run", driver="sim", kind="clone", key=KEY)
        journal.note_warm("i-run")
        journal.begin(instance_id="i-run", driver="sim", kind="run", session=SESSION)
        for path in live.iterdir():
            shutil.copy(path, folder)
    assert (folder / "journal.db-wal").stat().st_size > 4096
    return folder


def usable(folder):
    """Open the journal as the next supervisor does, and use it; return what it says of whom."""
    with Journal.open(folder / "journal.db", "boot") as (journal, _):
        rows = journal.left_instances()
        assert all(isinstance(left.made_at, float) for left in rows)
        found = {left.instance_id: left.state for left in rows}
        row = journal.begin(instance_id="i-next", driver="sim", kind="clone", key=KEY)
        journal.end(row, "CloneDone")
        journal.locked_repositories()
        journal.forget("i-next")
    return found


def test_the_whole_journal_says_what_was_written(left):
    assert usable(left) == {"i-warm": WARM, "i-run": RUN}


@pytest.mark.parametrize("name", ["journal.db", "journal.db-wal", "journal.db-shm"])
@pytest.mark.parametrize("how", ["cut", "garbage", "zeros", "gone"])
def test_any_damage_leads_to_an_older_or_no_journal_and_never_to_another(left, tmp_path, name, how):
    rng = random.Random(f"{name} {how}")
    size = (left / name).stat().st_size
    for number in range(1 if how == "gone" else ROUNDS):
        folder = tmp_path / f"round-{number}"
        shutil.copytree(left, folder)
        at = rng.randrange(size)
        if how == "gone":
            (folder / name).unlink()
        elif how == "cut":
            os.truncate(folder / name, at)
        else:
            length = rng.choice((1, 16, 512, 4096))
            with (folder / name).open("r+b") as file:
                file.seek(at)
                file.write(rng.randbytes(length) if how == "garbage" else bytes(length))
        found = usable(folder)
        assert set(found) <= set(STATES), (number, at)
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE instances",
        "DROP TABLE effects",
        "ALTER TABLE instances DROP COLUMN access",
        "ALTER TABLE effects RENAME COLUMN outcome TO other",
        "ALTER TABLE sessions RENAME TO other",
        "DROP TABLE instances; CREATE TABLE instances (x)",
        "DROP TABLE instances; CREATE VIEW instances AS SELECT 1 AS x",
        "UPDATE instances SET state=x'ff', made_at='yesterday'",
        "UPDATE instances SET key=x'ff00', access=7",
        "UPDATE instances SET driver=NULL",
        "PRAGMA user_version=1",
        "PRAGMA user_version=-1",
    ],
)
def test_a_journal_of_another_shape_stops_nobody(left, statement):
    with contextlib.closing(sqlite3.connect(left / "journal.db")) as connection:
        with contextlib.suppress(sqlite3.IntegrityError):
            connection.executescript(statement)
        connection.commit()
    assert set(usable(left)) <= set(STATES)
