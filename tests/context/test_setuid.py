"""Setuid files that a session leaves are made harmless."""

import os
import stat
import time

import pytest

from claude_vm.context.setuid import strip_setuid


def plant(path, mode):
    path.write_bytes(b"#!/bin/sh\n")
    path.chmod(mode)
    return path


def test_setuid_and_setgid_programs_lose_their_bits_and_are_told(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    first = plant(tmp_path / "a", 0o4755)
    second = plant(tmp_path / "deep" / "er" / "b", 0o2755)
    unreadable = plant(tmp_path / "c", 0o4111)
    assert sorted(strip_setuid(tmp_path, 0)) == sorted(map(str, (first, second, unreadable)))
    assert stat.S_IMODE(first.stat().st_mode) == 0o755
    assert stat.S_IMODE(second.stat().st_mode) == 0o755
    assert stat.S_IMODE(unreadable.stat().st_mode) == 0o111


def test_what_is_no_setuid_program_is_left_alone(tmp_path):
    plain = plant(tmp_path / "plain", 0o755)
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o2775)
    locking = plant(tmp_path / "locking", 0o2644)
    assert strip_setuid(tmp_path, 0) == []
    assert stat.S_IMODE(plain.stat().st_mode) == 0o755
    assert stat.S_IMODE(folder.stat().st_mode) == 0o2775
    assert stat.S_IMODE(locking.stat().st_mode) == 0o2644


def test_what_was_there_before_the_session_keeps_its_bits(tmp_path):
    old = plant(tmp_path / "old", 0o4755)
    assert strip_setuid(tmp_path, time.time() + 3600) == []
    assert old.stat().st_mode & stat.S_ISUID


def test_a_symlink_is_never_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    victim = plant(outside / "victim", 0o4755)
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link").symlink_to(victim)
    (inside / "folder").symlink_to(outside)
    os.mkfifo(inside / "fifo")
    assert strip_setuid(inside, 0) == []
    assert victim.stat().st_mode & stat.S_ISUID


def test_a_folder_that_is_gone_has_no_setuid_programs(tmp_path):
    assert strip_setuid(tmp_path / "gone", 0) == []
    (tmp_path / "file").touch()
    assert strip_setuid(tmp_path / "file", 0) == []


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        strip_setuid(tmp_path / "loop" / "x", 0)
