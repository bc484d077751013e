import pytest

from claude_vm.drivers import registry
from claude_vm.drivers.errors import DriverError, ToolMissingError


@pytest.mark.parametrize(
    ("missing", "uid", "chosen"), [("", 1000, "lima"), ("limactl", 1000, "qemu"), ("", 0, "qemu")]
)
def test_auto_is_lima_where_it_can_be_used_and_else_qemu(monkeypatch, missing, uid, chosen):
    monkeypatch.setattr(
        registry.shutil, "which", lambda name: None if name == missing else f"/usr/bin/{name}"
    )
    monkeypatch.setattr(registry.os, "geteuid", lambda: uid)

    assert registry.choose("auto") == chosen


def test_auto_without_a_hypervisor_says_what_to_install_and_is_never_the_simulation(monkeypatch):
    monkeypatch.setattr(registry.shutil, "which", lambda _name: None)

    with pytest.raises(ToolMissingError) as caught:
        registry.choose("auto")
    assert "apt install qemu-system-x86" in caught.value.hint


def test_an_unknown_driver_is_told_with_those_that_exist():
    with pytest.raises(DriverError, match="no driver 'qmeu'") as caught:
        registry.choose("qmeu")
    assert "qemu" in caught.value.hint


def test_the_simulation_is_there_by_its_name():
    assert registry.choose("sim") == "sim"
