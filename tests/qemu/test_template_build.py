"""What a template's build does on a host that is short of disk, or whose KVM boots nothing."""

import functools
import shutil
from pathlib import Path

import pytest

from claude_vm.drivers import templates
from claude_vm.drivers.api import TemplateSpec
from claude_vm.drivers.errors import DriverError
from claude_vm.drivers.images.debian import Image
from claude_vm.drivers.programs import own
from claude_vm.drivers.qemu.driver import open_driver
from claude_vm.drivers.qemu.hypervisor import Qemu
from claude_vm.drivers.vm import accelerator, driver, store, template
from claude_vm.drivers.vm.arguments import QemuBuild
from claude_vm.drivers.vm.hypervisor import Toolchain
from claude_vm.drivers.vm.machine import NeverBootedError
from claude_vm.drivers.vm.phases import VmPhase

pytestmark = pytest.mark.anyio

SPEC = TemplateSpec(name="t", project="/p", cpus=1, memory_mib=512, disk_gib=8, uid=1001, gid=1001)
NEED = (1 << 30) + (512 << 20)
IMAGE = Image(
    key="0123abcd",
    disk=Path("/image/disk"),
    kernel=Path("/image/kernel"),
    initrd=Path("/image/initrd"),
    suite="bookworm",
    architecture="amd64",
    user="claude",
    home="/home/claude",
    uid=1001,
    gid=1001,
    disk_gib=4,
    terminfo=(),
    locales=(),
    size_bytes=0,
)


class ReachedError(Exception):
    """The build came to its first disk."""


def host_of(name):
    return QemuBuild("/usr/bin/qemu-system-x86_64", "7.2", "x86_64", "pc-q35-7.2", name)


def silent(_phase, _detail):
    pass


@pytest.mark.parametrize(("free", "error"), [(NEED - 1, DriverError), (NEED, ReachedError)])
async def test_a_build_that_would_fill_the_disk_is_refused_and_leaves_nothing(
    owner, monkeypatch, free, error
):
    async def image(*_):
        return IMAGE

    async def make_overlay(*_):
        raise ReachedError("the build went on")

    usage = shutil.disk_usage("/")._replace(free=free)
    monkeypatch.setattr(template, "_image", image)
    monkeypatch.setattr(template, "make_overlay", make_overlay)
    monkeypatch.setattr(template.shutil, "disk_usage", lambda _path: usage)
    tools = Toolchain(Qemu(owner), own(), host_of("tcg"))
    with pytest.raises(error) as caught:
        await template.build(tools, store.VmTemplates(owner.home, "qemu"), SPEC, silent)
    if error is DriverError:
        assert "1.5 GiB free, and a template needs about 1.5 GiB" in caught.value.message
        assert "CLAUDE_VM_HOME" in caught.value.hint
    assert list(store.VmTemplates(owner.home, "qemu").folder("t").iterdir()) == []


@pytest.mark.parametrize(("starter", "writer"), [(0, 1001), (1000, 1000)])
async def test_a_guests_user_is_who_starts_its_vm_and_only_root_can_choose_the_projects_owner(
    owner, monkeypatch, starter, writer
):
    async def image(_tools, spec, _progress):
        raise ReachedError(spec.uid, spec.gid)

    monkeypatch.setattr(template, "_image", image)
    monkeypatch.setattr(template.os, "geteuid", lambda: starter)
    monkeypatch.setattr(template.os, "getegid", lambda: starter)
    tools = Toolchain(Qemu(owner), own(), host_of("tcg"))
    with pytest.raises(ReachedError) as caught:
        await template.build(tools, store.VmTemplates(owner.home, "qemu"), SPEC, silent)
    assert caught.value.args == (writer, writer)


class Builds:
    """Stands for the build: notes the accelerators, and fails as told with each of them."""

    def __init__(self, failures):
        self.failures = failures
        self.tried = []

    async def __call__(self, tools, _templates, spec, _progress):
        self.tried.append(tools.host.accelerator)
        if (failure := self.failures.get(tools.host.accelerator)) is not None:
            raise failure
        return template._stored(tools.hypervisor, spec, IMAGE)


@pytest.fixture
def open_with(owner, tmp_path, monkeypatch):
    """A driver on a host that seems to have KVM, with a build of our own."""
    device = tmp_path / "kvm"
    device.touch()

    async def find_host(name, _programs):
        return host_of(name)

    def virtualizing():
        return "flags\t\t: fpu vmx sse\n"

    choose = functools.partial(accelerator.choose, system="linux", device=device, cpu=virtualizing)
    monkeypatch.setattr(accelerator, "choose", choose)
    monkeypatch.setattr(accelerator, "find_host", find_host)

    def opened(builds):
        monkeypatch.setattr(driver, "build", builds)
        return open_driver(owner)

    return opened


async def test_a_kvm_that_boots_nothing_is_told_and_the_template_is_built_without_it(open_with):
    builds = Builds({"kvm": NeverBootedError("no output in 60 s")})
    told = []
    async with open_with(builds) as opened:
        record = await opened.build_template(SPEC, lambda *words: told.append(words))
        assert record.name == "t"
        assert builds.tried == ["kvm", "tcg"]
        assert (VmPhase.NO_KVM, "no output in 60 s") in told
        await opened.build_template(SPEC, silent)  # and it is not tried again
        assert builds.tried == ["kvm", "tcg", "tcg"]
        (problem,) = await opened.diagnose()
        assert "no output in 60 s" in problem.what
        assert not problem.fatal


async def test_a_vm_that_does_not_boot_without_kvm_either_is_an_error(open_with):
    builds = Builds({name: NeverBootedError(f"{name} says nothing") for name in ("kvm", "tcg")})
    async with open_with(builds) as opened:
        with pytest.raises(NeverBootedError, match="tcg says nothing"):
            await opened.build_template(SPEC, silent)
        with pytest.raises(NeverBootedError, match="tcg says nothing"):
            await opened.build_template(SPEC, silent)
    assert builds.tried == ["kvm", "tcg", "tcg"]


async def test_a_build_that_fails_for_another_reason_does_not_condemn_kvm(open_with):
    builds = Builds({"kvm": DriverError("the disk is full")})
    async with open_with(builds) as opened:
        for _ in range(2):
            with pytest.raises(DriverError, match="the disk is full"):
                await opened.build_template(SPEC, silent)
    assert builds.tried == ["kvm", "kvm"]


async def test_what_cannot_be_swept_keeps_no_template_from_being_built_and_is_told_when_cleaning(
    open_with, monkeypatch
):
    async def sweep(*_):
        raise DriverError("a file that can't be removed")

    monkeypatch.setattr(Qemu, "sweep", sweep)
    async with open_with(Builds({})) as opened:
        assert (await opened.build_template(SPEC, silent)).name == "t"
        dead = store.VmTemplates(opened._home, "qemu").folder("t") / f"{templates.BUILDING}00000000"
        dead.mkdir(parents=True)
        (dead / "lock").touch()
        with pytest.raises(DriverError, match="can't be removed"):
            await opened.collect_garbage()
        assert not dead.exists()
