import grp
import os
from pathlib import Path

import pytest

from claude_vm.drivers.errors import DriverError
from claude_vm.drivers.vm import accelerator
from claude_vm.drivers.vm.accelerator import choose, condemn, versioned

LISTING = """Supported machines are:
microvm              microvm (i386)
pc                   Standard PC (i440FX + PIIX, 1996) (alias of pc-i440fx-7.2)
q35                  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-7.2)
pc-q35-7.2           Standard PC (Q35 + ICH9, 2009)
virt                 QEMU 7.2 ARM Virtual Machine (alias of virt-7.2)
"""


@pytest.fixture
def device(tmp_path):
    path = tmp_path / "kvm"
    path.touch()
    return path


def virtualizing():
    return "flags\t\t: fpu vmx sse\n"


def test_a_usable_device_and_a_processor_flag_are_kvm(tmp_path, device):
    assert choose(tmp_path, system="linux", device=device, cpu=virtualizing).name == "kvm"


def test_a_processor_without_the_flag_is_emulated_though_the_device_is_there(tmp_path, device):
    choice = choose(tmp_path, system="linux", device=device, cpu=lambda: "flags : fpu sse vmxnot\n")

    assert choice.name == "tcg"
    assert "neither vmx nor svm" in choice.reason


def test_a_processor_that_lists_no_such_flags_is_believed(tmp_path, device):
    assert choose(tmp_path, system="linux", device=device, cpu=lambda: "Features : fp asimd\n").name == "kvm"


def test_no_device_is_emulation(tmp_path):
    assert choose(tmp_path, system="linux", device=tmp_path / "none", cpu=virtualizing).name == "tcg"


def test_a_device_of_somebody_else_is_emulation_and_says_what_to_do(tmp_path, device, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, _mode: path != device)

    group = grp.getgrgid(os.getgid() or 1)
    os.chown(device, -1, group.gr_gid)
    device.chmod(0o660)

    def reason_for(process, listed):
        monkeypatch.setattr(os, "getegid", lambda: process)
        monkeypatch.setattr(os, "getgroups", lambda: [process])
        monkeypatch.setattr(os, "getgrouplist", lambda _name, _gid: listed)
        return choose(tmp_path, system="linux", device=device, cpu=virtualizing).reason

    other = group.gr_gid + 1
    assert f"`sudo usermod -aG {group.gr_name} $USER`" in reason_for(other, [other])
    joined = reason_for(other, [other, group.gr_gid])
    assert "usermod" not in joined
    assert "log in again, then `claude-vm daemon stop`" in joined
    assert "log in" not in reason_for(group.gr_gid, [group.gr_gid])
    device.chmod(0o600)
    reason = choose(tmp_path, system="linux", device=device, cpu=virtualizing).reason
    assert "usermod" not in reason
    assert "its mode is 0600" in reason


def test_kvm_that_failed_is_not_tried_again_until_the_next_boot(tmp_path, device, monkeypatch):
    condemn(tmp_path, "no output in 60 s\nmore")

    choice = choose(tmp_path, system="linux", device=device, cpu=virtualizing)
    assert (choice.name, "no output in 60 s" in choice.reason) == ("tcg", True)

    monkeypatch.setattr(accelerator, "boot_id", lambda: "another boot")
    assert choose(tmp_path, system="linux", device=device, cpu=virtualizing).name == "kvm"


def test_a_machine_is_named_with_its_version():
    assert versioned(LISTING, "q35") == "pc-q35-7.2"
    assert versioned(LISTING, "virt") == "virt-7.2"


def test_a_machine_that_this_qemu_lacks_is_an_error():
    with pytest.raises(DriverError, match="no machine"):
        versioned(LISTING, "raspi")


def test_another_architecture_is_an_error(monkeypatch):
    monkeypatch.setattr(accelerator.platform, "machine", lambda: "sparc64")

    with pytest.raises(DriverError, match="not supported"):
        accelerator.architecture()


def test_the_hint_names_packages_not_paths():
    assert "qemu-system-x86" in accelerator.INSTALL_HINT
    assert str(Path.home()) not in accelerator.INSTALL_HINT
