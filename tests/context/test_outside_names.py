"""Files that have other names outside of a session's mounts are found, and what can't be seen is said."""

import json
import os
import resource
import subprocess
import sys
import time

import pytest

from claude_vm.context import outside_names
from claude_vm.context.outside_names import Walk, look

NAME = "d" * 20
not_root = pytest.mark.skipif(
    os.geteuid() == 0, reason="it needs a user other than root, who may open every folder"
)


@pytest.fixture
def mount(tmp_path):
    folder = tmp_path / "mount"
    folder.mkdir()
    return folder


def root(path, *, device=0, inode=0):
    return {"path": str(path), "device": device, "inode": inode}


def names(found):
    return [file["path"] for file in found["files"]]


def linked(outside, inside):
    outside.write_text("x")
    inside.hardlink_to(outside)


def walked(*roots, since=0.0, **bounds):
    walk = Walk(since, deadline=bounds.pop("deadline", time.monotonic() + 60), **bounds)
    for one in roots:
        walk.look(root(one))
    return walk.findings()


def test_a_changed_file_with_a_name_outside_is_found_wherever_it_lies(tmp_path, mount):
    (mount / "a/b").mkdir(parents=True)
    linked(tmp_path / "far", mount / "a/b/near")
    (mount / "alone").write_text("x")
    (mount / "link").symlink_to(tmp_path / "far")
    found = look([root(mount)], time.time() - 5)
    assert names(found) == [str(mount / "a/b/near")]
    assert found["files_count"] == 1
    assert found["unseen"] == []


def test_names_that_all_lie_in_the_mounts_are_no_way_out(tmp_path, mount):
    other = tmp_path / "other"
    other.mkdir()
    linked(mount / "one", mount / "two")
    linked(mount / "three", other / "four")
    assert names(look([root(mount), root(other)], 0)) == []
    assert names(look([root(mount)], 0)) == [str(mount / "three")]


def test_a_mount_in_a_mount_counts_its_names_once(tmp_path, mount):
    inner = mount / "inner"
    inner.mkdir()
    linked(tmp_path / "far", inner / "near")
    assert names(look([root(inner), root(mount), root(mount)], 0)) == [str(inner / "near")]


def test_what_did_not_change_since_is_left_out(tmp_path, mount):
    linked(tmp_path / "far", mount / "near")
    assert look([root(mount)], time.time() + 60)["files_count"] == 0


def test_many_are_counted_and_few_are_named(tmp_path, mount):
    (tmp_path / "out").mkdir()
    for number in range(outside_names.NAMED + 7):
        linked(tmp_path / f"out/{number}", mount / f"{number:03}")
    found = look([root(mount)], 0)
    assert found["files_count"] == outside_names.NAMED + 7
    assert len(found["files"]) == outside_names.NAMED


@not_root
@pytest.mark.parametrize("mode", [0o111, 0o300, 0o000])
def test_a_folder_that_a_guest_could_enter_and_we_can_not_list_is_told(mount, mode):
    hidden = mount / "hidden"
    hidden.mkdir()
    hidden.chmod(mode)
    try:
        found = look([root(mount)], 0)
    finally:
        hidden.chmod(0o755)
    assert found["unseen"] == [(str(hidden), "Permission denied")]


def test_a_tree_deeper_than_the_bound_is_walked_that_far_and_the_rest_is_told(tmp_path, mount):
    make = f"import os\nfor _ in range(1100): os.mkdir({NAME!r}); os.chdir({NAME!r})"
    subprocess.run([sys.executable, "-c", make], cwd=mount, check=True)
    linked(tmp_path / "far", mount / "near")
    try:
        found = look([root(mount)], 0)
    finally:
        subprocess.run(["rm", "-r", mount / NAME], check=True)  # pytest can't
    assert names(found) == [str(mount / "near")]
    ((path, reason),) = found["unseen"]
    assert path.startswith(f"{mount}"[:50])
    assert path.endswith(f"/{NAME}")
    assert len(path) == outside_names.LONGEST
    assert "deeper than 200 folders" in reason


def test_folders_that_are_open_at_a_time_are_bounded_and_closed(mount, monkeypatch):
    deepest = mount.joinpath(*"abcdefghij")
    deepest.mkdir(parents=True)
    opened, closed = [], []
    real_open, real_close = os.open, os.close
    monkeypatch.setattr(os, "open", lambda *a, **k: opened.append(real_open(*a, **k)) or opened[-1])
    monkeypatch.setattr(os, "close", lambda number: closed.append(number) or real_close(number))
    walked(mount, depth=4)
    assert len(opened) == 4
    assert sorted(closed) == sorted(opened)


@pytest.mark.parametrize("bound", [{"entries": 3}, {"deadline": 0.0}])
def test_a_walk_that_is_out_of_time_or_entries_says_so(mount, bound):
    for name in "abcdef":
        (mount / name).mkdir()
    ((path, reason),) = walked(mount, **bound)["unseen"]
    assert path == str(mount)
    assert "too many files" in reason


def test_a_folder_without_folders_that_has_too_many_files_is_told(tmp_path, mount):
    inner = tmp_path / "inner"
    inner.mkdir()
    for name in "abcdef":
        (mount / name).touch()
        (inner / name).touch()
    found = walked(inner, mount, entries=3)
    assert found["unseen"] == [(str(inner), outside_names.TOO_MANY), (str(mount), outside_names.TOO_MANY)]


def test_a_walk_that_is_out_of_memory_says_so_and_tells_what_it_has(tmp_path, mount, monkeypatch):
    linked(tmp_path / "far", mount / "near")
    (mount / "folder").mkdir()
    seen = []
    real = os.scandir

    def scarce(descriptor):
        seen.append(descriptor)
        if len(seen) > 1:
            raise MemoryError
        return real(descriptor)

    monkeypatch.setattr(os, "scandir", scarce)
    found = walked(mount, tmp_path)
    assert names(found) == [str(mount / "near")]
    assert [reason for _, reason in found["unseen"]] == [outside_names.TOO_MANY] * 2


def test_the_program_needs_little_memory_for_files_with_long_paths(mount):
    """Paths of 20 KB: as they are they would take 80 MB."""
    make = (
        "import os\nfor _ in range(100): os.mkdir('d' * 200); os.chdir('d' * 200)\n"
        "for n in range(4000): open(f'a{n}', 'x').close(); os.link(f'a{n}', f'b{n}')"
    )
    subprocess.run([sys.executable, "-c", make], cwd=mount, check=True)
    limit = 64 << 20
    argv = [sys.executable, "-I", "-S", outside_names.__file__]
    try:
        done = subprocess.run(
            argv,
            input=json.dumps({"roots": [root(mount)], "since": 0, "seconds": 60}).encode(),
            capture_output=True,
            check=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        )
    finally:
        subprocess.run(["rm", "-r", mount / ("d" * 200)], check=True)  # pytest can't
    assert json.loads(done.stdout)["unseen"] == []


def test_a_link_in_the_place_of_a_folder_is_not_followed(tmp_path, mount, monkeypatch):
    outside = tmp_path / "outside"
    outside.mkdir()
    linked(tmp_path / "far", outside / "near")
    (mount / "folder").mkdir()
    real = os.open

    def swapped(path, *arguments, **more):
        if path == "folder":  # another guest is quicker
            (mount / "folder").rmdir()
            (mount / "folder").symlink_to(outside)
        return real(path, *arguments, **more)

    monkeypatch.setattr(os, "open", swapped)
    assert walked(mount) == {"files": [], "files_count": 0, "unseen": [], "unseen_count": 0}


def test_another_directory_under_a_mounts_name_is_not_searched(tmp_path, mount):
    linked(tmp_path / "far", mount / "near")
    status = mount.stat()
    there = look([root(mount, device=status.st_dev, inode=status.st_ino)], 0)
    assert names(there) == [str(mount / "near")]
    found = look([root(mount, device=status.st_dev, inode=status.st_ino + 1)], 0)
    assert found["files_count"] == 0
    assert found["unseen"] == [(str(mount), "it was replaced by another directory")]


def test_a_mount_that_is_gone_holds_nothing(tmp_path):
    assert look([root(tmp_path / "gone")], 0)["unseen_count"] == 0


def test_the_program_takes_an_order_and_answers(tmp_path, mount):
    linked(tmp_path / "far", mount / os.fsdecode(b"n\xffar"))
    order = {"roots": [root(mount)], "since": 0, "seconds": 60}
    argv = [sys.executable, "-I", "-S", outside_names.__file__]
    done = subprocess.run(argv, input=json.dumps(order).encode(), capture_output=True, check=True)
    assert names(json.loads(done.stdout)) == [str(mount / os.fsdecode(b"n\xffar"))]
