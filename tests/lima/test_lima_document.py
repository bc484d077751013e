"""What Lima is told of an instance, and what `limactl` and its QEMU are started with; both also for macOS."""

import json
import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_vm.bench import limastock
from claude_vm.bench.site import Site
from claude_vm.drivers.api import Mount, Owner
from claude_vm.drivers.lima import arguments
from claude_vm.drivers.lima.document import QEMU, VZ, LimaInstance, document
from claude_vm.drivers.lima.hypervisor import Lima
from claude_vm.drivers.lima.importing import Import
from claude_vm.drivers.programs import BuildEnvironment, search
from claude_vm.drivers.vm import accelerator
from claude_vm.drivers.vm.arguments import QemuBuild, Ram, VmPlan

HOST = QemuBuild("/usr/bin/qemu-system-x86_64", "QEMU 7.2 limactl 2.2.0", "x86_64", "pc-q35-7.2", "tcg")
ARM = QemuBuild(
    "/usr/bin/qemu-system-aarch64", "QEMU 9.0 limactl 2.2.0", "aarch64", "virt-9.0", "kvm", "cortex"
)
GUEST = VmPlan(
    name="claude-vm:0123abcd:sv:i-0123456789",
    cpus=2,
    memory_mib=2048,
    disk="/h/lima/sv.i-0123456789/disk",
    kernel="/i/kernel",
    initrd="/i/initrd",
    kernel_arguments="console=ttyS0 quiet claude_vm.net=192.168.5",
    serial="",
    empty="/h/lima/sv.i-0123456789/empty",
    monitor=10,
    helper=11,
    slots=(Mount("/proc/self/fd/12", "/in", writable=True), Mount("/proc/self/fd/13", "/in", writable=False)),
)
RESTORED = msgspec.structs.replace(GUEST, ram=Ram("/t/ram", shared=False), incoming=True)
INSTANCE = LimaInstance(
    architecture="x86_64",
    cpus=2,
    memory_mib=2048,
    disk_bytes=8 << 30,
    image="/h/lima/sv.i-0123456789/disk",
    ssh_port=40022,
    uid=1000,
    user="claude",
    home="/home/claude",
)
MOUNTS = (
    Mount('/Users/me/project: "one"', '/Users/me/project: "one"'),
    Mount("/data", "/data", writable=False),
)


def recorded(name):
    return (Path(__file__).with_name("recorded") / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "instance", "vm_type", "mounts"),
    [
        ("qemu.yaml", INSTANCE, QEMU, ()),
        ("vz.yaml", msgspec.structs.replace(INSTANCE, architecture="aarch64"), VZ, MOUNTS),
        (
            "vz-kernel.yaml",
            msgspec.structs.replace(INSTANCE, kernel="/i/k", initrd="/i/i", kernel_arguments="console=hvc0"),
            VZ,
            (),
        ),
    ],
)
def test_the_document_is_the_recorded_one(name, instance, vm_type, mounts):
    assert document(instance, vm_type=vm_type, mounts=mounts).decode() == recorded(name)


def test_mounts_are_never_limas_own_where_it_would_not_enforce_their_mode():
    with pytest.raises(ValueError, match="not Lima's"):
        document(INSTANCE, mounts=MOUNTS)


@given(st.text(min_size=1).filter(lambda text: "\0" not in text))
def test_no_path_can_add_a_setting(text):
    mounts = (Mount(f"/{text}", f"/{text}", writable=False),)
    told = json.loads(document(INSTANCE, vm_type=VZ, mounts=mounts))
    plain = json.loads(document(INSTANCE, vm_type=VZ, mounts=(Mount("/x", "/x"),)))
    assert told.pop("mounts") == [{"location": f"/{text}", "mountPoint": f"/{text}", "writable": False}]
    plain.pop("mounts")
    assert told == plain


@pytest.mark.parametrize(
    ("name", "host", "guest"), [("boot", HOST, GUEST), ("restore", HOST, RESTORED), ("arm", ARM, RESTORED)]
)
def test_the_argument_lists_are_the_recorded_ones(name, host, guest):
    lists = [*arguments.seen(host, guest), "", *arguments.unseen(host, guest)]
    assert "\n".join(lists) + "\n" == recorded(f"{name}.txt")


def test_lima_sees_neither_paths_nor_devices():
    hostile = '/a, b{{ fd_connect "/x" }}\'$(id)'
    guest = msgspec.structs.replace(
        RESTORED, slots=(Mount(hostile, "/in", writable=True),), ram=Ram(hostile, shared=False), empty=hostile
    )
    assert arguments.seen(HOST, guest) == arguments.seen(HOST, RESTORED)
    assert not any("/" in word for word in arguments.seen(HOST, guest))


def test_the_commands_are_never_interactive():
    found = arguments.command("/b/limactl", "start", "--foreground", "sv.i-0")
    assert found == ["/b/limactl", "--tty=false", "start", "--foreground", "sv.i-0"]


def test_nothing_of_the_users_own_lima_reaches_ours():
    own = {
        "HOME": "/home/me",
        "PATH": "/bin",
        "LIMA_HOME": "/home/me/other",
        "LIMA_SSH_PORT_FORWARDER": "true",
        "QEMU_SYSTEM_X86_64": "qemu -x",
        "SSH": "ssh -v",
        "SSH_AUTH_SOCK": "/agent",
        "ANTHROPIC_API_KEY": "secret",
    }
    assert arguments.environment(own, "/h/lima", "x86_64", ["/h/a b", "-name", "it's"]) == {
        "HOME": "/home/me",
        "PATH": "/bin",
        "LANG": "C",
        "LIMA_HOME": "/h/lima",
        "QEMU_SYSTEM_X86_64": "'/h/a b' -name 'it'\"'\"'s'",
    }
    assert "QEMU_SYSTEM_X86_64" not in arguments.environment(own, "/h/lima")


def test_questions_to_qemu_go_to_qemu_and_a_start_goes_through_the_listener(tmp_path):
    for name in ("python 3", "qemu"):
        program = tmp_path / name
        program.write_text('#!/bin/sh\necho "${0##*/}|$*"\n')
        program.chmod(0o755)
    text = arguments.stand_in(
        str(tmp_path / "python 3"), "/c/confine.py", str(tmp_path / "qemu"), "/r/it's.d"
    )
    script = tmp_path / "script"
    script.write_text(text)

    def say(*words):
        return subprocess.run(
            ["sh", script, *words], capture_output=True, check=True, text=True
        ).stdout.strip()

    assert say("-M", "none", "-accel", "help") == "qemu|-M none -accel help"
    assert say("--version") == "qemu|--version"
    begun = say("-name", "guest=x", "-m", "1")
    assert begun == f"python 3|-I -S /c/confine.py handover=/r/it's.d {tmp_path / 'qemu'} -name guest=x -m 1"
    assert shlex.split(text.splitlines()[1])[-2:] == [str(tmp_path / "qemu"), "$@"]


@pytest.mark.parametrize(
    ("architecture", "board"), [("x86_64", "q35,vmport=off"), ("aarch64", "virt,gic-version=max")]
)
def test_a_foreign_image_is_emulated_on_the_board_of_its_architecture(architecture, board):
    program = arguments.emulated(architecture)
    assert program[:3] == [f"qemu-system-{architecture}", "-machine", board]
    assert program[3] == "-accel"
    assert program[4].startswith("tcg,")
    assert program[5:] == ["-cpu", "max"]


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_import_and_the_bench_emulate_the_hosts_own_architecture(machine, short, monkeypatch):
    monkeypatch.setattr(accelerator.platform, "machine", lambda: machine)
    for name in ("limactl", f"qemu-system-{machine}"):
        (short / name).symlink_to("/bin/true")
    around = BuildEnvironment(search(str(short)), {})
    lima = Lima(Owner(short / "home", "sv", short))
    found = lima.image_source("tcg", "template:debian-13", around)
    assert isinstance(found, Import)
    program, *words = arguments.emulated(machine)
    assert found._program == [f"{short}/{program}", *words]
    assert lima.image_source("kvm", "template:debian-13", around)._program == ()

    monkeypatch.setattr(accelerator, "choose", lambda _home: accelerator.Accelerator("tcg", "none"))
    site = Site(short / "site", short)
    told = limastock._environment(site, SimpleNamespace(site=site))
    assert told[f"QEMU_SYSTEM_{machine.upper()}"] == shlex.join(arguments.emulated(machine))


def test_all_consoles_that_lima_adds_on_some_architecture_are_closed():
    assert set(Lima.consoles) == {"char-serial", "char-serial-pci", "char-serial-virtio"}
