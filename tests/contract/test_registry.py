import os
import sys

import msgspec
import pytest

from claude_vm.drivers import registry
from claude_vm.drivers.errors import DriverError, ToolMissingError
from claude_vm.drivers.programs import search

pytestmark = pytest.mark.anyio


@pytest.fixture
def programs(monkeypatch, tmp_path):
    """A host with everything, where `limactl` says what it is told. They are in one folder."""
    monkeypatch.setattr("claude_vm.drivers.programs.MORE", ())
    (tmp_path / "qemu-system-x86_64").symlink_to("/bin/true")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("claude_vm.drivers.vm.accelerator.architecture", lambda: "x86_64")
    says(tmp_path, "echo limactl version 2.2.0")
    return search(str(tmp_path))


def says(folder, line):
    program = folder / "limactl"
    program.write_text(f"#!/bin/sh\necho asked >>{folder}/asked\n{line}\n")
    program.chmod(0o755)


async def test_auto_is_lima_where_it_can_be_used_which_is_asked_once(programs, tmp_path):
    assert [await registry.usable(programs) for _ in range(3)] == [["lima", "qemu"]] * 3
    assert (tmp_path / "asked").read_text() == "asked\n"


async def test_auto_is_qemu_without_lima(programs, tmp_path):
    (tmp_path / "limactl").unlink()
    assert await registry.usable(programs) == ["qemu"]


async def test_auto_is_qemu_for_root_whom_lima_refuses(programs, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert await registry.usable(programs) == ["qemu"]


@pytest.mark.parametrize("line", ["echo limactl version 1.0.3", "echo something else", "exit 1"])
async def test_auto_is_qemu_where_lima_is_too_old_or_broken_until_another_one_is_installed(
    programs, tmp_path, line
):
    says(tmp_path, line)
    assert await registry.usable(programs) == ["qemu"]
    says(tmp_path, "echo limactl version 2.10.0 #newer")
    assert await registry.usable(programs) == ["lima", "qemu"]


async def test_auto_without_a_hypervisor_says_what_to_install_and_is_never_the_simulation(programs, tmp_path):
    (tmp_path / "qemu-system-x86_64").unlink()

    with pytest.raises(ToolMissingError) as caught:
        await registry.usable(programs)
    assert "apt install qemu-system-x86" in caught.value.hint


def test_an_unknown_driver_is_told_with_those_that_exist():
    with pytest.raises(DriverError, match="no driver 'qmeu'") as caught:
        registry.check("qmeu")
    assert "qemu" in caught.value.hint


async def test_the_simulation_is_there_by_its_name_alone(programs):
    registry.check("sim")
    assert "sim" not in await registry.usable(programs)


def test_an_unknown_driver_has_no_module():
    with pytest.raises(DriverError, match="no driver 'newone'"):
        registry.find("newone")


async def test_auto_may_be_a_driver_that_needs_no_program(programs, monkeypatch, tmp_path):
    (tmp_path / "qemu-system-x86_64").unlink()
    isolating = msgspec.structs.replace(registry.DRIVERS["sim"], isolates=True)
    monkeypatch.setitem(registry.DRIVERS, "light", isolating)
    monkeypatch.setattr(registry, "ISOLATING", (*registry.ISOLATING, "light"))
    assert await registry.usable(programs) == ["light"]
