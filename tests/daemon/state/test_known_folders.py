"""What is remembered of folders, in the file that all supervisors of a home share."""

import os
import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from claude_vm.context.folders import Folder
from claude_vm.supervisor.daemon.errors import CommandError
from claude_vm.supervisor.daemon.state.known_folders import NAME, KnownFolders


@pytest.fixture
def known_folders(tmp_path):
    made = KnownFolders(tmp_path)
    yield made
    made.close()


def folder(path, *, writable=True, identity=(1, 2), reach=None):
    path = Path(path)
    return Folder(path=path, reach=reach or (path,), template_root=path, writable=writable, identity=identity)


def test_nothing_is_known_and_no_file_made_before_something_is_remembered(known_folders, tmp_path):
    assert known_folders.known().writable == ()
    known_folders.remember([])
    assert list(tmp_path.iterdir()) == []


def test_what_is_remembered_comes_back_whatever_its_names_and_numbers_are(known_folders, tmp_path):
    strange = os.fsdecode(b"/a\n\xff'\"")
    given = folder(strange, identity=(2**64 - 1, 2**64 - 1), reach=(Path(strange), Path("/b c")))
    known_folders.remember([given, folder("/c", writable=False)])
    other = KnownFolders(tmp_path)
    assert other.known().get(Path(strange)) == given
    assert other.known().writable == (Path(strange),)
    other.close()
    assert stat.S_IMODE((tmp_path / NAME).stat().st_mode) == 0o600


def test_another_supervisor_sees_what_is_written_at_once(known_folders, tmp_path):
    other = KnownFolders(tmp_path)
    assert other.known().writable == ()
    known_folders.remember([folder("/a")])
    assert other.known().writable == (Path("/a"),)
    other.remember([folder("/b")])
    assert known_folders.known().writable == (Path("/a"), Path("/b"))
    other.close()


def test_a_folder_that_guests_could_write_stays_one_also_against_who_does_not_know(known_folders):
    known_folders.remember([folder("/a")])
    known_folders.remember([folder("/a", writable=False, identity=(0, 0), reach=(Path("/a"), Path("/b")))])
    found = known_folders.known().get(Path("/a"))
    assert (found.writable, found.identity, found.reach) == (True, (1, 2), (Path("/a"), Path("/b")))


def test_other_threads_may_ask_too(known_folders):
    known_folders.remember([folder("/a")])
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: known_folders.known().writable, range(50)))
        pool.submit(known_folders.remember, [folder("/b")]).result()
    assert found == [(Path("/a"),)] * 50
    assert known_folders.known().writable == (Path("/a"), Path("/b"))


def test_nothing_is_read_again_as_long_as_nobody_writes(known_folders):
    known_folders.remember([folder("/a")])
    assert known_folders.known() is known_folders.known()


def test_a_file_that_was_removed_is_made_anew(known_folders, tmp_path):
    known_folders.remember([folder("/a")])
    (tmp_path / NAME).unlink()
    assert known_folders.known().writable == ()
    known_folders.remember([folder("/b")])
    assert KnownFolders(tmp_path).known().writable == (Path("/b"),)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b"no database at all" * 100),
        lambda file: _execute(file, "UPDATE folders SET identity='x'"),
        lambda file: _execute(file, "DROP TABLE folders"),
    ],
)
def test_what_can_not_be_read_is_never_taken_for_nothing(known_folders, tmp_path, damage):
    known_folders.remember([folder("/a")])
    known_folders.close()
    damage(tmp_path / NAME)
    for _ in range(2):
        with pytest.raises(CommandError) as caught:
            known_folders.known()
        assert caught.value.code == "places-failed"
        assert str(tmp_path / NAME) in caught.value.message
        assert "\n" not in caught.value.message + caught.value.hint


def test_what_a_newer_version_wrote_is_refused_and_left_alone(known_folders, tmp_path):
    known_folders.remember([folder("/a")])
    known_folders.close()
    _execute(tmp_path / NAME, "PRAGMA user_version=99")
    before = (tmp_path / NAME).read_bytes()
    for act in (known_folders.known, lambda: known_folders.remember([folder("/b")])):
        with pytest.raises(CommandError) as caught:
            act()
        assert (caught.value.code, bool(caught.value.hint)) == ("newer-database", True)
    assert (tmp_path / NAME).read_bytes() == before


def _execute(file, statement):
    with sqlite3.connect(file) as connection:
        connection.execute(statement)
    connection.close()


def test_a_file_that_was_made_when_there_was_no_room_for_more_is_read_without_writing(
    known_folders, tmp_path
):
    (tmp_path / NAME).touch()
    assert known_folders.known().writable == ()
    assert (tmp_path / NAME).stat().st_size == 0
    known_folders.remember([folder("/a")])
    assert known_folders.known().writable == (Path("/a"),)
