"""What is remembered of folders, in the file that all supervisors of a home share."""

import os
import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from claude_vm.context.known import Folder
from claude_vm.supervisor.daemon.errors import CommandError
from claude_vm.supervisor.daemon.state.places import NAME, Places


@pytest.fixture
def places(tmp_path):
    made = Places(tmp_path)
    yield made
    made.close()


def folder(path, *, writable=True, identity=(1, 2), reach=None):
    path = Path(path)
    return Folder(path=path, reach=reach or (path,), template_root=path, writable=writable, identity=identity)


def test_nothing_is_known_and_no_file_made_before_something_is_remembered(places, tmp_path):
    assert places.known().writable == ()
    places.remember([])
    assert list(tmp_path.iterdir()) == []


def test_what_is_remembered_comes_back_whatever_its_names_and_numbers_are(places, tmp_path):
    strange = os.fsdecode(b"/a\n\xff'\"")
    given = folder(strange, identity=(2**64 - 1, 2**64 - 1), reach=(Path(strange), Path("/b c")))
    places.remember([given, folder("/c", writable=False)])
    other = Places(tmp_path)
    assert other.known().get(Path(strange)) == given
    assert other.known().writable == (Path(strange),)
    other.close()
    assert stat.S_IMODE((tmp_path / NAME).stat().st_mode) == 0o600


def test_another_supervisor_sees_what_is_written_at_once(places, tmp_path):
    other = Places(tmp_path)
    assert other.known().writable == ()
    places.remember([folder("/a")])
    assert other.known().writable == (Path("/a"),)
    other.remember([folder("/b")])
    assert places.known().writable == (Path("/a"), Path("/b"))
    other.close()


def test_a_folder_that_guests_could_write_stays_one_also_against_who_does_not_know(places):
    places.remember([folder("/a")])
    places.remember([folder("/a", writable=False, identity=(0, 0), reach=(Path("/a"), Path("/b")))])
    found = places.known().get(Path("/a"))
    assert (found.writable, found.identity, found.reach) == (True, (1, 2), (Path("/a"), Path("/b")))


def test_other_threads_may_ask_too(places):
    places.remember([folder("/a")])
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: places.known().writable, range(50)))
        pool.submit(places.remember, [folder("/b")]).result()
    assert found == [(Path("/a"),)] * 50
    assert places.known().writable == (Path("/a"), Path("/b"))


def test_nothing_is_read_again_as_long_as_nobody_writes(places):
    places.remember([folder("/a")])
    assert places.known() is places.known()


def test_a_file_that_was_removed_is_made_anew(places, tmp_path):
    places.remember([folder("/a")])
    (tmp_path / NAME).unlink()
    assert places.known().writable == ()
    places.remember([folder("/b")])
    assert Places(tmp_path).known().writable == (Path("/b"),)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b"no database at all" * 100),
        lambda file: _execute(file, "UPDATE folders SET identity='x'"),
        lambda file: _execute(file, "DROP TABLE folders"),
    ],
)
def test_what_can_not_be_read_is_never_taken_for_nothing(places, tmp_path, damage):
    places.remember([folder("/a")])
    places.close()
    damage(tmp_path / NAME)
    for _ in range(2):
        with pytest.raises(CommandError) as caught:
            places.known()
        assert caught.value.code == "places-failed"
        assert str(tmp_path / NAME) in caught.value.message
        assert "\n" not in caught.value.message + caught.value.hint


def test_what_a_newer_version_wrote_is_refused_and_left_alone(places, tmp_path):
    places.remember([folder("/a")])
    places.close()
    _execute(tmp_path / NAME, "PRAGMA user_version=99")
    before = (tmp_path / NAME).read_bytes()
    for act in (places.known, lambda: places.remember([folder("/b")])):
        with pytest.raises(CommandError) as caught:
            act()
        assert (caught.value.code, bool(caught.value.hint)) == ("newer-database", True)
    assert (tmp_path / NAME).read_bytes() == before


def _execute(file, statement):
    with sqlite3.connect(file) as connection:
        connection.execute(statement)
    connection.close()


def test_a_file_that_was_made_when_there_was_no_room_for_more_is_read_without_writing(places, tmp_path):
    (tmp_path / NAME).touch()
    assert places.known().writable == ()
    assert (tmp_path / NAME).stat().st_size == 0
    places.remember([folder("/a")])
    assert places.known().writable == (Path("/a"),)
