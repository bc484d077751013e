"""Whether there is room for one more clone."""

import os
from types import SimpleNamespace

import psutil
import pytest

from claude_vm.drivers.api import InstanceSpec
from claude_vm.drivers.errors import DriverError
from claude_vm.supervisor.daemon.pool import admission
from claude_vm.supervisor.daemon.pool.admission import DiskFullError, MemoryShortError, admit, check_room

GIB = 1 << 30
MIB = 1 << 20
HOST_MIB = 1 << 17


def spec(memory_mib=8192):
    return InstanceSpec("i-0123456789", "t", "g", cpus=1, memory_mib=memory_mib, disk_gib=20)


def test_a_clone_is_let_in_with_exactly_the_margins():
    check_room(GIB, 819, HOST_MIB, spec())
    check_room(GIB, 256, HOST_MIB, spec(1024))


def test_a_byte_too_little_disk_is_refused_with_its_code_and_what_to_do():
    with pytest.raises(DiskFullError, match="1023 MiB of disk are free, 1024 MiB are needed") as caught:
        check_room(GIB - 1, 1 << 20, HOST_MIB, spec())
    assert caught.value.code == "disk-full"
    assert "claude-vm list --unused" in str(caught.value)


@pytest.mark.parametrize(
    ("available", "memory", "needed"), [(818, 8192, 819), (255, 512, 256), (0, 65536, 6553)]
)
def test_too_little_memory_for_its_size_is_refused_with_its_code_and_what_to_do(available, memory, needed):
    with pytest.raises(
        MemoryShortError, match=f"{available} MiB of memory.*{needed} MiB are needed"
    ) as caught:
        check_room(1 << 50, available, HOST_MIB, spec(memory))
    assert caught.value.code == "no-memory"
    assert "claude-vm stop" in str(caught.value)
    assert "pool drain" in str(caught.value)


def test_a_vm_larger_than_the_host_is_refused_however_much_is_available():
    check_room(GIB, 8192, 8192, spec(8192))
    with pytest.raises(MemoryShortError, match=r"8193 MiB.*this host has 8192 MiB.*--memory") as caught:
        check_room(GIB, 8192, 8192, spec(8193))
    assert caught.value.code == "no-memory"


def test_a_full_disk_is_told_before_short_memory_because_nothing_works_without_disk():
    with pytest.raises(DiskFullError):
        check_room(0, 0, HOST_MIB, spec())


def test_what_is_measured_is_what_this_user_may_take(tmp_path, monkeypatch):
    # Half of the free blocks are root's reserve; buffers and caches are available, though not free.
    blocks = SimpleNamespace(f_bfree=2 << 20, f_bavail=1 << 20, f_frsize=1024)
    monkeypatch.setattr(os, "statvfs", lambda folder: {tmp_path: blocks}[folder])
    memory = SimpleNamespace(free=0, available=819 * MIB, total=8192 * MIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    admit(tmp_path, spec())
    monkeypatch.setattr(admission, "DISK_MARGIN_BYTES", GIB + 1)
    with pytest.raises(DiskFullError):
        admit(tmp_path, spec())
    monkeypatch.setattr(admission, "DISK_MARGIN_BYTES", GIB)
    with pytest.raises(MemoryShortError):
        admit(tmp_path, spec(8193))


def test_a_folder_that_is_gone_is_an_error_and_no_crash(tmp_path):
    with pytest.raises(DriverError, match="can't be read"):
        admit(tmp_path / "gone", spec())
