"""Locks that tell live supervisors from dead ones."""

import subprocess
import sys

import pytest

from claude_vm.supervisor.daemon.state import identity


def test_a_second_holder_is_refused(tmp_path):
    with identity.locked(tmp_path, "daemon"):
        with pytest.raises(identity.AlreadyRunningError, match="daemon"), identity.locked(tmp_path, "daemon"):
            pass
        with identity.locked(tmp_path, "other"):
            pass


def test_a_killed_holder_leaves_its_lock_free(tmp_path):
    program = (
        "import os, sys, pathlib\n"
        "from claude_vm.supervisor.daemon.state import identity\n"
        "with identity.locked(pathlib.Path(sys.argv[1]), 'daemon'):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(identity.AlreadyRunningError), identity.locked(tmp_path, "daemon"):
            pass
        holder.kill()
        holder.wait()
        with identity.locked(tmp_path, "daemon"):
            pass


def test_a_lock_on_a_removed_folder_is_not_taken_for_the_new_one(tmp_path):
    with identity.locked(tmp_path, "p1"):
        identity.remove(tmp_path, "p1")
        with identity.locked(tmp_path, "p1"):  # a new folder, a new file: nobody holds that
            assert identity.dead_supervisors(tmp_path, "daemon") == ["p1"]


def test_ids_of_supervisors_inside_clients_are_legal_for_drivers():
    first, second = identity.in_process_id(), identity.in_process_id()
    assert first != second
    assert len(first) <= 24
    assert set(first) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_without_any_supervisor_there_is_nothing_to_sweep(tmp_path):
    assert identity.dead_supervisors(tmp_path / "nowhere", "daemon") == []


def test_what_a_dead_daemon_left_is_for_its_successor_alone(tmp_path):
    for name in ("daemon", "p1", "p2"):
        with identity.locked(tmp_path, name):
            pass
    assert identity.dead_supervisors(tmp_path, "p2") == ["p1"]
