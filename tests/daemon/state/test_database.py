"""How databases are opened: steps are taken once, wholly or not at all, whoever comes at the same time."""

import contextlib
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest

from claude_vm.supervisor.daemon.state.database import connect

ONE = (("CREATE TABLE a (x)", "INSERT INTO a VALUES (1)"),)
TWO = (*ONE, ("ALTER TABLE a ADD COLUMN y", "UPDATE a SET y = x + 1"))


def rows(path, schema):
    with contextlib.closing(connect(path, schema, timeout_s=10)) as connection:
        return connection.execute("SELECT * FROM a").fetchall()


def test_a_file_gets_the_steps_that_it_lacks_and_none_twice(tmp_path):
    path = tmp_path / "some.db"
    assert rows(path, ONE) == [(1,)]
    assert rows(path, TWO) == rows(path, TWO) == [(1, 2)]


def test_a_step_that_fails_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "some.db"
    rows(path, ONE)
    with pytest.raises(sqlite3.Error):
        rows(path, (*TWO, ("CREATE TABLE b (x)", "no statement")))
    assert rows(path, ONE) == [(1,)]


@pytest.mark.parametrize("there", [False, True])
def test_who_opens_it_at_the_same_time_takes_no_step_twice(tmp_path, there):
    for number in range(20):
        path = tmp_path / f"{number}.db"
        if there:
            rows(path, ONE)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _, path=path: rows(path, TWO), range(4)))
        assert found == [[(1, 2)]] * 4


def test_a_file_may_have_other_tables_besides(tmp_path):
    path = tmp_path / "some.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE other (x)")
        connection.execute("ANALYZE")
    assert rows(path, ONE) == rows(path, ONE)


@pytest.mark.parametrize("change", ["ALTER TABLE {} ADD COLUMN more", "DROP TABLE {}"])
def test_a_file_whose_tables_are_not_as_the_steps_make_them_is_not_ours(tmp_path, change):
    path = tmp_path / "some.db"
    rows(path, ONE)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (table,) = connection.execute("SELECT name FROM sqlite_master WHERE type='table'").fetchone()
        connection.execute(change.format(table))
    with pytest.raises(sqlite3.DatabaseError, match="not ours"):
        rows(path, ONE)
