import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_vm.drivers.api import Mount, TemplateRecord
from claude_vm.drivers.qemu.arguments import arguments
from claude_vm.drivers.vm.arguments import SLOTS, QemuBuild, Ram, VmPlan, VmSize
from claude_vm.drivers.vm.store import Stored

HOST = QemuBuild("/usr/bin/qemu-system-x86_64", "QEMU 7.2", "x86_64", "pc-q35-7.2", "tcg")
ARM = QemuBuild(
    "/usr/bin/qemu-system-aarch64", "QEMU 9.0", "aarch64", "virt-9.0", "kvm", "cortex", sandbox=False
)
GUEST = VmPlan(
    name="claude-vm:0123abcd:sv:i-0123456789",
    cpus=2,
    memory_mib=2048,
    disk="/h/disk.qcow2",
    kernel="/i/kernel",
    initrd="/i/initrd",
    kernel_arguments="console=ttyS0 quiet",
    serial="/h/serial.log",
    empty="/h/empty",
    monitor=10,
    helper=11,
    slots=(Mount("/home/me/project, one: x", "/in", writable=True), Mount("/data", "/in", writable=False)),
)
SIZE = VmSize(2, 2048)
RECORD = TemplateRecord("t", "g", "qemu", "/p", 0, 1, 512, 8, 0, "u", "/h", None, "i")
STORED = Stored(RECORD, 1000, 1000, "/k", "/i", "quiet")


@pytest.mark.parametrize(
    ("name", "host", "guest"),
    [
        ("x86_64-boot", HOST, GUEST),
        (
            "x86_64-restore",
            msgspec.structs.replace(HOST, accelerator="kvm"),
            msgspec.structs.replace(
                GUEST, ram=Ram("/t/ram", shared=False), incoming=True, run_as=(1000, 1000)
            ),
        ),
        ("aarch64-boot", ARM, msgspec.structs.replace(GUEST, ram=Ram("/t/ram", shared=True))),
    ],
)
def test_the_argument_list_is_the_recorded_one(name, host, guest):
    recorded = Path(__file__).with_name("arguments") / f"{name}.txt"

    assert "\n".join(arguments(host, guest)) + "\n" == recorded.read_text(encoding="utf-8")


def test_slots_are_always_the_same_number_and_unused_ones_are_read_only():
    argv = arguments(HOST, GUEST)

    local = [word for word in argv if word.startswith("local,id=slot")]
    assert len(local) == SLOTS
    assert "readonly=on" not in local[0]
    assert local[1].endswith(",readonly=on")
    assert all("path=/h/empty," in word and word.endswith(",readonly=on") for word in local[2:])


@given(st.text(min_size=1).filter(lambda text: "\0" not in text))
def test_no_path_can_add_an_option(text):
    plain = arguments(HOST, msgspec.structs.replace(GUEST, slots=(Mount("/x", "/in", writable=False),)))
    hostile = arguments(
        HOST, msgspec.structs.replace(GUEST, slots=(Mount("/" + text, "/in", writable=False),))
    )

    assert len(plain) == len(hostile)
    slot = next(word for word in hostile if word.startswith("local,id=slot0,"))
    path = slot.removeprefix("local,id=slot0,path=/").removesuffix(
        ",security_model=none,multidevs=remap,readonly=on"
    )
    # As QEMU reads it: a doubled comma is one, a single one ends the value.
    assert re.sub(",,", ",", path) == text
    assert all(len(commas) % 2 == 0 for commas in re.findall(",+", path))


@pytest.mark.parametrize(
    ("stored", "size"),
    [
        (STORED, VmSize(3, 2048)),
        (STORED, VmSize(2, 4096)),
        (msgspec.structs.replace(STORED, record=msgspec.structs.replace(RECORD, image="j")), SIZE),
        (msgspec.structs.replace(STORED, kernel_arguments=""), SIZE),
        (msgspec.structs.replace(STORED, uid=0), SIZE),
    ],
)
def test_another_guest_needs_another_snapshot(stored, size):
    assert STORED.snapshot_key(arguments, HOST, SIZE) != stored.snapshot_key(arguments, HOST, size)


@pytest.mark.parametrize(
    "change", [{"build": "QEMU 7.3"}, {"machine": "pc-q35-7.1"}, {"accelerator": "kvm"}, {"cpu": "other"}]
)
def test_another_qemu_or_processor_needs_another_snapshot(change):
    other = msgspec.structs.replace(HOST, **change)

    assert STORED.snapshot_key(arguments, HOST, SIZE) != STORED.snapshot_key(arguments, other, SIZE)
