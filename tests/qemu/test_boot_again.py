"""A guest's kernel that crashes while it comes up is booted again; any other failure is told at once."""

from contextlib import asynccontextmanager

import pytest

from claude_vm.drivers.api import TemplateRecord
from claude_vm.drivers.errors import BootError
from claude_vm.drivers.programs import own
from claude_vm.drivers.vm import snapshots
from claude_vm.drivers.vm.arguments import QemuBuild, VmSize
from claude_vm.drivers.vm.hypervisor import Toolchain
from claude_vm.drivers.vm.machine import BOOTS, Files, boot_again
from claude_vm.drivers.vm.phases import VmPhase
from claude_vm.drivers.vm.store import Stored

pytestmark = pytest.mark.anyio

PANIC = BootError("QEMU ended", detail="[ 1.7] Kernel panic - not syncing: Fatal exception in interrupt")


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Boots:
    """Boots that fail as told, then one that works."""

    def __init__(self, *failures):
        self.failures = list(failures)
        self.tried = 0
        self.phases = []

    async def __call__(self):
        self.tried += 1
        if self.failures:
            raise self.failures.pop(0)
        return "machine"

    def progress(self, phase, detail):
        assert detail
        self.phases.append(phase)


async def test_a_crash_is_followed_by_another_boot():
    boots = Boots(PANIC, PANIC)
    assert await boot_again(boots, boots.progress) == "machine"
    assert boots.phases == [VmPhase.BOOT_AGAIN, VmPhase.BOOT_AGAIN]


async def test_a_kernel_that_always_crashes_is_given_up():
    boots = Boots(*[PANIC] * BOOTS)
    with pytest.raises(BootError, match="Kernel panic"):
        await boot_again(boots, boots.progress)
    assert boots.tried == BOOTS


async def test_another_failure_is_not_tried_again():
    boots = Boots(BootError("QEMU ended", detail="no such disk"))
    with pytest.raises(BootError, match="no such disk"):
        await boot_again(boots, boots.progress)
    assert boots.tried == 1


class Hypervisor:
    """Launches machines whose guests answer as told; notes which of them are open."""

    name, mark = "qemu", "mark"

    def __init__(self, folder, *failures):
        self.folder = folder
        self.failures = list(failures)
        self.log = []

    def files(self, _folder):
        return Files(self.folder, self.folder / "m", self.folder / "h")

    async def end(self, _files):
        self.log.append("end")

    def tidy(self, _files):
        self.log.append("tidy")

    @asynccontextmanager
    async def launch(self, *_, **_options):
        self.log.append("open")
        try:
            yield self
        finally:
            self.log.append("close")

    async def wait_for_helper(self, _timeout_s):
        if self.failures:
            raise self.failures.pop(0)


@pytest.mark.parametrize(
    ("failures", "opened"), [((), ["end", "open"]), ((PANIC,), ["end", "open", "close", "end", "open"])]
)
async def test_of_the_boots_for_a_snapshot_only_the_last_stays_open_and_what_fails_later_is_no_boot(
    tmp_path, monkeypatch, failures, opened
):
    hypervisor = Hypervisor(tmp_path, *failures)
    seen = []

    async def settle(machine):
        assert machine is hypervisor
        seen.extend(hypervisor.log)
        raise PANIC

    monkeypatch.setattr(snapshots, "_settle", settle)
    tools = Toolchain(hypervisor, own(), QemuBuild("/qemu", "7.2", "x86_64", "pc-q35-7.2", "tcg"))
    record = TemplateRecord("t", "g", "qemu", "/p", 0, 1, 512, 8, 0, "u", "/h", None, "image")
    stored = Stored(record, 1, 1, "/k", "/i", "")
    preparation = snapshots.Preparation(tools, stored, VmSize(1, 512), tmp_path, lambda *_: None)
    with pytest.raises(BootError):
        await preparation.take(tmp_path)
    assert seen == opened
    assert hypervisor.log == [*opened, "close", "end", "tidy"]
