"""The cache of guest images: one build, complete or absent, and nothing left of what was interrupted."""

import fcntl
import os
import signal
import subprocess
import sys

import anyio
import pytest

from claude_vm.drivers.errors import BadImageError, DriverError, ToolMissingError
from claude_vm.drivers.images import bootstrap
from claude_vm.drivers.images.debian import (
    ImageSpec,
    ensure_image,
    images,
    remove_image,
)
from claude_vm.drivers.images.lock import hold
from claude_vm.drivers.images.phases import ImagePhase
from claude_vm.drivers.process import ProcessIdentity, find_marked

pytestmark = pytest.mark.anyio

SPEC = ImageSpec(uid=1001, gid=1001, disk_gib=1)


def quiet(phase, detail):
    pass


async def alive(pids):
    """Return those that don't end: dying takes a moment."""
    with anyio.move_on_after(10):
        for pid in pids:
            if (identity := ProcessIdentity.of(pid)) is not None:
                await identity.wait()
    return [pid for pid in pids if ProcessIdentity.of(pid)]


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache with 'quotes', \"both\" & $(spaces)\n"


async def test_an_image_is_built_once_and_then_found(cache, mmdebstrap, scratch):
    first = await ensure_image(cache, SPEC, quiet)
    assert await ensure_image(cache, SPEC, quiet) == first
    assert mmdebstrap.runs == 1
    assert first.disk.read_bytes().startswith(b"a file system")
    assert first.disk.stat().st_size == 1 << 30
    assert first.kernel.read_text() == "kernel\n"
    assert first.initrd.read_text() == "initrd\n"
    assert (first.terminfo, first.locales) == (("terminfo",), ("C.utf8", "C"))
    assert (first.user, first.home, first.suite) == ("claude", "/home/claude", "trixie")
    assert list(images(cache)) == [first]


async def test_an_image_has_only_its_own_files_and_nobody_may_write_them(cache, mmdebstrap, scratch):
    image = await ensure_image(cache, SPEC, quiet)
    assert names(cache / "images") == sorted([f".{image.key}.lock", image.key])
    assert names(image.disk.parent) == ["disk.raw", "image.json", "initrd", "kernel"]
    assert names(scratch) == []
    assert {path.stat().st_mode & 0o777 for path in (image.disk, image.kernel, image.initrd)} == {0o444}
    assert image.disk.parent.stat().st_mode & 0o777 == 0o700


async def test_root_on_the_host_is_root_in_the_guest(cache, mmdebstrap, scratch):
    image = await ensure_image(cache, ImageSpec(uid=0, gid=0, disk_gib=1), quiet)
    assert (image.user, image.home) == ("root", "/root")


async def test_two_builders_at_once_make_one_build(cache, mmdebstrap, scratch):
    found, phases = [], []

    async def build():
        found.append(await ensure_image(cache, SPEC, lambda phase, _: phases.append(phase)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(build)
        tasks.start_soon(build)
    assert mmdebstrap.runs == 1
    assert found[0] == found[1]
    assert ImagePhase.IMAGE_AWAITED in phases


async def test_different_specifications_are_different_images(cache, mmdebstrap, scratch):
    first = await ensure_image(cache, SPEC, quiet)
    second = await ensure_image(cache, ImageSpec(uid=1002, gid=1001, disk_gib=1), quiet)
    assert {image.key for image in images(cache)} == {first.key, second.key}


async def test_the_kernel_arguments_name_the_console_of_the_architecture(cache, mmdebstrap, scratch):
    x86 = await ensure_image(cache, SPEC, quiet)
    arm = await ensure_image(cache, ImageSpec(uid=1001, gid=1001, disk_gib=1, architecture="arm64"), quiet)
    assert x86.kernel_arguments.split()[0] == "console=ttyS0"
    assert arm.kernel_arguments.split()[0] == "console=ttyAMA0"
    assert "tsc=reliable" not in arm.kernel_arguments


async def test_a_failed_build_says_why_and_leaves_nothing(cache, mmdebstrap, scratch):
    mmdebstrap.behave("fail")
    with pytest.raises(DriverError, match="exit status 25") as caught:
        await ensure_image(cache, SPEC, quiet)
    assert caught.value.detail.endswith("E: NO_PUBKEY 0123456789ABCDEF")
    assert caught.value.hint == "sudo apt-get install debian-archive-keyring"
    assert list(images(cache)) == []
    assert [name for name in names(cache / "images") if not name.endswith(".lock")] == []
    assert names(scratch) == []


async def test_a_failed_build_can_be_repeated(cache, mmdebstrap, scratch):
    mmdebstrap.behave("fail")
    with pytest.raises(DriverError):
        await ensure_image(cache, SPEC, quiet)
    mmdebstrap.behave("well")
    assert (await ensure_image(cache, SPEC, quiet)).disk.exists()


async def test_a_build_without_a_disk_is_no_image(cache, mmdebstrap, scratch):
    mmdebstrap.behave("empty")
    with pytest.raises(BadImageError, match=r"made no disk\.raw"):
        await ensure_image(cache, SPEC, quiet)
    assert list(images(cache)) == []
    assert names(scratch) == []


async def test_a_cancelled_build_leaves_nothing_and_no_process(cache, mmdebstrap, scratch):
    mmdebstrap.behave("hang")
    seen = []
    async with anyio.create_task_group() as tasks:

        def progress(phase, detail):
            if detail == "hanging":
                seen.extend(found.pid for found in find_marked(str(next(scratch.iterdir()))))
                tasks.cancel_scope.cancel()

        tasks.start_soon(ensure_image, cache, SPEC, progress)
    assert seen
    assert await alive(seen) == []
    assert names(scratch) == []
    assert [name for name in names(cache / "images") if not name.endswith(".lock")] == []


KILLED = """
import sys, anyio
from pathlib import Path
from claude_vm.drivers.images import bootstrap
from claude_vm.drivers.images.debian import ImageSpec, ensure_image
bootstrap.scratch_root = lambda _: Path(sys.argv[2])
progress = lambda phase, detail: detail == "hanging" and print(detail, flush=True)
anyio.run(ensure_image, Path(sys.argv[1]), ImageSpec(uid=1001, gid=1001, disk_gib=1), progress)
"""


def kill_a_builder(cache, scratch):
    """Start a build in a process of its own, wait until it hangs, and kill it without warning."""
    argv = [sys.executable, "-c", KILLED, os.fspath(cache), os.fspath(scratch)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as builder:
        assert builder.stdout.readline() == b"hanging\n"
        left = [found.pid for found in find_marked(str(next(scratch.iterdir())))]
        builder.send_signal(signal.SIGKILL)
    return left


async def test_the_next_build_ends_and_removes_what_a_killed_one_left(cache, mmdebstrap, scratch):
    mmdebstrap.behave("hang")
    left = kill_a_builder(cache, scratch)
    assert [pid for pid in left if ProcessIdentity.of(pid)]
    assert names(scratch) != []
    mmdebstrap.behave("well")
    image = await ensure_image(cache, SPEC, quiet)
    assert await alive(left) == []
    assert names(scratch) == []
    assert names(cache / "images") == sorted([f".{image.key}.lock", image.key])


async def test_a_cache_that_does_not_exist_has_no_images(cache):
    assert list(images(cache)) == []
    await remove_image(cache, "0123456789abcdef0123")


async def test_a_removed_image_is_gone_and_can_be_built_again(cache, mmdebstrap, scratch):
    image = await ensure_image(cache, SPEC, quiet)
    await remove_image(cache, image.key)
    await remove_image(cache, image.key)
    assert names(cache / "images") == []
    assert await ensure_image(cache, SPEC, quiet) == image
    assert mmdebstrap.runs == 2


async def test_a_damaged_image_is_none_and_gets_replaced(cache, mmdebstrap, scratch):
    image = await ensure_image(cache, SPEC, quiet)
    (image.disk.parent / "image.json").write_text("{")
    assert list(images(cache)) == []
    assert await ensure_image(cache, SPEC, quiet) == image
    assert mmdebstrap.runs == 2


async def test_an_image_whose_disk_vanished_is_built_again(cache, mmdebstrap, scratch):
    image = await ensure_image(cache, SPEC, quiet)
    image.disk.unlink()
    assert await ensure_image(cache, SPEC, quiet) == image
    assert image.disk.exists()


async def test_missing_programs_are_named_before_anything_is_made(cache, mmdebstrap, scratch, monkeypatch):
    (mmdebstrap.folder / "mmdebstrap").unlink()
    monkeypatch.setattr("claude_vm.drivers.programs.MORE", ())
    monkeypatch.setenv("PATH", os.fspath(mmdebstrap.folder))
    with pytest.raises(ToolMissingError, match="mmdebstrap is not installed") as caught:
        await ensure_image(cache, SPEC, quiet)
    assert "apt-get install mmdebstrap" in caught.value.hint
    assert names(scratch) == []
    assert mmdebstrap.runs == 0


async def test_a_full_disk_is_noticed_before_the_build(cache, mmdebstrap, scratch, monkeypatch):
    monkeypatch.setattr(bootstrap, "_SCRATCH_BYTES", 1 << 60)
    with pytest.raises(DriverError, match=r"needs .* GiB in") as caught:
        await ensure_image(cache, SPEC, quiet)
    assert "make room" in caught.value.hint
    assert mmdebstrap.runs == 0


async def test_a_lock_that_its_holder_removed_is_not_held_twice(tmp_path):
    inside = 0

    async def worker():
        nonlocal inside
        async with hold(tmp_path / "lock", remove=True):
            inside += 1
            assert inside == 1
            await anyio.lowlevel.checkpoint()
            inside -= 1

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(worker)
    assert names(tmp_path) == []


async def test_a_lock_file_removed_before_it_was_locked_is_no_lock(tmp_path, monkeypatch):
    path, take, calls = tmp_path / "lock", fcntl.flock, []

    def flock(fd, how):
        calls.append(fd)
        if len(calls) == 1:
            path.unlink()
        take(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    async with hold(path):
        assert path.exists()
    assert len(calls) == 2
