"""Folders that are removed while somebody else removes something of them."""

import os

import pytest

from claude_vm.drivers.directories import remove_tree


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "i-0"
    (made / "deep").mkdir(parents=True)
    for name in ("a", "b", "c", "deep/d"):
        (made / name).touch()
    return made


@pytest.mark.parametrize("gone", ["a", "b", "c", "deep"])
def test_what_another_removes_at_the_same_moment_stops_nothing(folder, monkeypatch, gone):
    unlink, rmdir = os.unlink, os.rmdir

    def other(function):
        def call(path, *args, **options):
            if (folder / gone).exists():
                (folder / gone).rename(folder.parent / "gone")  # out of this folder, as removed
            return function(path, *args, **options)

        return call

    monkeypatch.setattr(os, "unlink", other(unlink))
    monkeypatch.setattr(os, "rmdir", other(rmdir))
    remove_tree(folder)
    assert not folder.exists()


def test_a_folder_that_is_gone_is_fine(tmp_path):
    remove_tree(tmp_path / "nothing")


def test_what_can_not_be_removed_is_told(folder, monkeypatch):
    def refuse(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(PermissionError):
        remove_tree(folder)
