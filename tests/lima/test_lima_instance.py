"""The folder that is an instance of Lima's."""

import json
import os
import socket
import struct
from pathlib import Path

import msgspec
import pytest

from claude_vm.drivers.errors import DriverError
from claude_vm.drivers.lima import instance
from claude_vm.drivers.vm.arguments import QemuBuild, VmPlan

HOST = QemuBuild("/usr/bin/qemu-system-x86_64", "QEMU 7.2", "x86_64", "pc-q35-7.2", "tcg")


@pytest.fixture
def folder(short):
    return short / "sv.i-0123456789"


@pytest.fixture
def guest(folder):
    return VmPlan(
        name="n", cpus=2, memory_mib=512, disk=str(folder / "disk"), kernel="/i/kernel", initrd="/i/initrd",
        kernel_arguments="quiet", serial="", empty="", monitor=0, helper=0, uid=1000, user="claude",
        home="/home/claude",
    )  # fmt: skip


def raw(path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.truncate(path, size)


def test_an_instance_is_complete_when_its_document_is_there(folder, guest, monkeypatch):
    raw(folder / "disk", 8 << 30)
    there = []
    original = Path.rename

    def rename(path, target):
        if target.name == "lima.yaml":
            there.extend(sorted(found.name for found in folder.iterdir()))
        return original(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    instance.furnish(folder, HOST, guest, 4022, "#!/bin/sh\n")

    assert there == [".lima.yaml.new", "disk", "initrd", "kernel", "kernel.cmdline", "start-qemu"]
    told = json.loads((folder / "lima.yaml").read_bytes())
    assert (told["disk"], told["ssh"]["localPort"], told["plain"]) == (str(8 << 30), 4022, True)
    assert (folder / "kernel").readlink() == Path("/i/kernel")
    assert (folder / "kernel.cmdline").read_text().startswith("quiet ")
    assert (folder / "start-qemu").stat().st_mode & 0o777 == 0o700
    assert (folder / "lima.yaml").stat().st_mode & 0o777 == 0o600


def test_what_a_killed_start_has_left_does_not_stand_in_the_way(folder, guest):
    raw(folder / "disk", 1 << 20)
    stale = (
        "ha.pid",
        "qemu.pid",
        "ha.sock",
        "qmp.sock",
        "x.tmp",
        "ha.stdout.log",
        "ha.stderr.log",
        "serial.log",
    )
    for name in stale:
        (folder / name).touch()
    (folder / "instance.json").touch()
    instance.furnish(folder, HOST, guest, 4022, "")
    left = {path.name for path in folder.iterdir()}
    assert not left & set(stale)
    assert "instance.json" in left


def test_a_builds_disk_is_elsewhere_and_linked(folder, guest, short):
    raw(short / "building" / "disk.qcow2", 1 << 20)
    built = msgspec.structs.replace(guest, disk=str(short / "building" / "disk.qcow2"))
    for _ in range(2):
        instance.furnish(folder, HOST, built, 4022, "")
        assert (folder / "disk").readlink() == Path(built.disk)


def test_a_missing_disk_is_told(folder, guest):
    with pytest.raises(DriverError, match="can't be made"):
        instance.furnish(folder, HOST, guest, 4022, "")
    assert not (folder / "lima.yaml").exists()


def test_a_disks_size_is_what_its_guest_sees(tmp_path):
    raw(tmp_path / "raw", 5 << 20)
    head = b"QFI\xfb" + struct.pack(">IQIIQ", 3, 0, 0, 16, 7 << 30)
    (tmp_path / "qcow2").write_bytes(head + bytes(100))
    assert instance.disk_size(tmp_path / "raw") == 5 << 20
    assert instance.disk_size(tmp_path / "qcow2") == 7 << 30


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (bytes(2048) + b"instance-id: iid-1795291356\nlocal-hostname: x\n" + bytes(99), "iid-1795291356"),
        (b"instance-id: nothing\n", ""),
        (b"", ""),
    ],
)
def test_the_name_of_a_start_is_read_from_the_disk_for_cloud_init(tmp_path, content, name):
    assert instance.boot_name(tmp_path) == ""
    (tmp_path / "cidata.iso").write_bytes(content)
    assert instance.boot_name(tmp_path) == name


def test_a_port_is_one_that_can_be_had():
    port = instance.free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))


def test_a_port_that_was_given_to_another_instance_is_not_given_again(monkeypatch):
    once = instance.free_port()
    numbers = iter([once, once + 1 if once < 65535 else once - 1])
    real = socket.socket.bind
    monkeypatch.setattr(socket.socket, "getsockname", lambda _self: ("127.0.0.1", next(numbers)))
    monkeypatch.setattr(socket.socket, "bind", lambda self, _address: real(self, ("127.0.0.1", 0)))
    assert instance.free_port({once}) != once
