import fcntl
import os
import shutil
import time
from pathlib import Path

import msgspec
import pytest

from claude_vm.drivers import templates
from claude_vm.drivers.api import TemplateRecord
from claude_vm.drivers.errors import TemplateMissingError
from claude_vm.drivers.images import rootfs
from claude_vm.drivers.images.rootfs import guest_programs
from claude_vm.drivers.qemu.driver import open_driver
from claude_vm.drivers.templates import building_folder, discard, publish
from claude_vm.drivers.vm.store import Stored, VmTemplates


def stored(name="t", generation="g1"):
    record = TemplateRecord(
        name=name, generation=generation, driver="qemu", project="/p", created_at=1.0, cpus=2, memory_mib=512,
        disk_gib=8, size_bytes=5, user="claude", home="/home/claude", claude_version=None, image="i",
    )  # fmt: skip
    return Stored(record, 1000, 1000, "/k", "/i", "quiet")


def make(home, name="t", generation="g1"):
    with building_folder(VmTemplates(home, "qemu").folder(name)) as building:
        (building / "template.json").write_bytes(msgspec.json.encode(stored(name, generation)))
        return publish(building, generation)


def test_a_published_generation_is_the_current_one_and_keeps_its_name(tmp_path):
    make(tmp_path)
    make(tmp_path, generation="g2")

    found = VmTemplates(tmp_path, "qemu").find("t", "current")

    assert found.folder.name == "g2"
    assert VmTemplates(tmp_path, "qemu").find("t", "g1").stored.record.generation == "g1"
    assert [item.stored.record.generation for item in VmTemplates(tmp_path, "qemu").current()] == ["g2"]


@pytest.mark.anyio
async def test_a_template_whose_guest_has_other_programs_of_ours_is_stale(tmp_path, owner):
    for name, guest in (("old", "from another version"), ("older", ""), ("own", guest_programs())):
        with building_folder(VmTemplates(owner.home, "qemu").folder(name)) as building:
            written = stored(name)
            written = msgspec.structs.replace(
                written, record=msgspec.structs.replace(written.record, guest=guest)
            )
            (building / "template.json").write_bytes(msgspec.json.encode(written))
            publish(building, "g1")
    async with open_driver(owner) as driver:
        assert {t.name: t.stale for t in await driver.templates()} == {
            "old": True,
            "older": True,
            "own": False,
        }


def test_the_name_of_our_programs_changes_with_each_of_them(tmp_path, monkeypatch):
    shutil.copytree(rootfs._GUEST, tmp_path / "guest")
    monkeypatch.setattr(rootfs, "_GUEST", tmp_path / "guest")
    names = [guest_programs.__wrapped__()]
    for file in ("helper/job.py", "__main__.py", "holder/shell.py", "session", "sshd_config"):
        with (tmp_path / "guest" / file).open("ab") as program:
            program.write(b"\n")
        names.append(guest_programs.__wrapped__())
    assert len(set(names)) == 6
    assert guest_programs() == names[0]


def test_readers_see_a_generation_at_every_moment_of_a_swap(tmp_path, monkeypatch):
    make(tmp_path)
    seen = []

    def watched(name):
        original = getattr(Path, name)

        def step(*arguments, **options):
            seen.append(VmTemplates(tmp_path, "qemu").find("t", "current").folder.name)
            return original(*arguments, **options)

        return step

    for name in ("rename", "symlink_to"):
        monkeypatch.setattr(Path, name, watched(name))
    make(tmp_path, generation="g2")

    assert set(seen) == {"g1"}
    assert VmTemplates(tmp_path, "qemu").find("t", "current").folder.name == "g2"


def test_a_failed_build_leaves_nothing(tmp_path):
    folder = VmTemplates(tmp_path, "qemu").folder("t")
    with building_folder(folder) as building:
        (building / "disk.qcow2").touch()

    assert list(folder.iterdir()) == []


def test_a_build_that_goes_on_is_not_dead_and_one_whose_builder_died_is(tmp_path):
    folder = VmTemplates(tmp_path, "qemu").folder("t")
    with building_folder(folder) as building:
        assert VmTemplates(tmp_path, "qemu").dead_builds() == []

        dead = folder / f"{templates.BUILDING}dead"
        dead.mkdir()
        (dead / "lock").touch()
        nested = building / "snapshots" / f"{templates.BUILDING}nested"
        nested.mkdir(parents=True)
        (nested / "lock").touch()

        assert sorted(VmTemplates(tmp_path, "qemu").dead_builds()) == sorted([dead, nested])


def test_a_folder_without_its_lock_file_yet_is_given_a_minute(tmp_path):
    young = VmTemplates(tmp_path, "qemu").folder("t") / f"{templates.BUILDING}young"
    young.mkdir(parents=True)
    assert VmTemplates(tmp_path, "qemu").dead_builds() == []

    os.utime(young, (time.time() - 120, time.time() - 120))
    assert VmTemplates(tmp_path, "qemu").dead_builds() == [young]


def test_an_interrupted_removal_is_found_again(tmp_path):
    generation = make(tmp_path)
    trash = generation.with_name(f"{templates.TRASH}x")
    generation.rename(trash)

    assert VmTemplates(tmp_path, "qemu").dead_builds() == [trash]
    discard(trash)
    assert VmTemplates(tmp_path, "qemu").dead_builds() == []


def test_a_removal_goes_on_where_a_sweep_removes_the_same(tmp_path, monkeypatch):
    trash = tmp_path / f"{templates.TRASH}x"
    for name in ("snapshots/a", "snapshots/b"):
        (trash / name).mkdir(parents=True)
    rmdir, others = os.rmdir, [trash / "snapshots/a", trash / "snapshots/b"]

    def both(path, **options):
        while others:
            rmdir(others.pop())
        rmdir(path, **options)

    monkeypatch.setattr(os, "rmdir", both)
    discard(trash)
    assert not trash.exists()


def test_the_lock_is_not_inherited_by_programs(tmp_path):
    with building_folder(tmp_path) as building:
        flags = [
            fcntl.fcntl(int(fd), fcntl.F_GETFD)
            for fd in (path.name for path in Path("/proc/self/fd").iterdir())
            if os.path.realpath(f"/proc/self/fd/{fd}") == str(building / "lock")
        ]
        assert flags == [fcntl.FD_CLOEXEC]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"record": 5}', b"\xff"])
def test_a_damaged_record_is_a_missing_template(tmp_path, content):
    (make(tmp_path) / "template.json").write_bytes(content)

    with pytest.raises(TemplateMissingError):
        VmTemplates(tmp_path, "qemu").find("t", "g1")
    assert VmTemplates(tmp_path, "qemu").current() == []


def test_a_snapshot_is_complete_or_not_there(tmp_path):
    make(tmp_path)
    generation = VmTemplates(tmp_path, "qemu").find("t", "g1")
    folder = generation.folder / "snapshots" / "key"
    folder.mkdir(parents=True)
    (folder / "ram").touch()
    assert generation.snapshot("key") is None

    (folder / "state").touch()
    assert generation.snapshot("key").disk == generation.disk
    (folder / "disk.qcow2").touch()
    assert generation.snapshot("key").disk == folder / "disk.qcow2"


def test_use_is_recorded_without_touching_the_generation(tmp_path):
    generation = make(tmp_path)
    before = (generation / "template.json").stat().st_mtime_ns

    assert VmTemplates(tmp_path, "qemu").last_used("t") == 0.0
    VmTemplates(tmp_path, "qemu").touch("t")
    VmTemplates(tmp_path, "qemu").touch("unknown")

    assert VmTemplates(tmp_path, "qemu").last_used("t") > 0.0
    assert (generation / "template.json").stat().st_mtime_ns == before
    assert not VmTemplates(tmp_path, "qemu").folder("unknown").exists()
