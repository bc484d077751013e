"""Which way an instance comes up, and what ends before the next: with a hypervisor that only takes notes."""

import os
from contextlib import asynccontextmanager

import msgspec
import pytest

from claude_vm.drivers import templates
from claude_vm.drivers.api import InstanceSpec, TemplateRecord, tell_nobody
from claude_vm.drivers.errors import BootError, DriverError
from claude_vm.drivers.process import ProcessIdentity
from claude_vm.drivers.programs import own
from claude_vm.drivers.vm import start, store
from claude_vm.drivers.vm.arguments import QemuBuild, VmSize
from claude_vm.drivers.vm.hypervisor import Toolchain
from claude_vm.drivers.vm.instance import InstanceFolder, VmRecord
from claude_vm.drivers.vm.machine import Files
from claude_vm.drivers.vm.phases import VmPhase

pytestmark = pytest.mark.anyio

ONE = "i-00000000aa"
HOST = QemuBuild("/usr/bin/qemu-system-x86_64", "7.2", "x86_64", "pc-q35-7.2", "tcg")
PANIC = BootError("QEMU ended", detail="Kernel panic - not syncing")
GONE = ProcessIdentity(4_194_303, 0.0, "another boot")


class Noting:
    """A hypervisor; also each of its machines, and their monitor."""

    name, mark, disk = "qemu", "mark", "disk.qcow2"

    def __init__(self, owner):
        self.owner = owner
        self.log = []
        self.failures = {"restore": [], "boot": []}
        self.status = "inmigrate"
        self.monitor = self

    def folder(self, instance_id):
        return self.owner.home / "instances" / instance_id

    def files(self, folder):
        return Files(folder, folder / "m", folder / "h")

    def arguments(self, _host, guest):
        return [str(guest.cpus), str(guest.memory_mib)]

    async def end(self, _files):
        self.log.append("end")

    @asynccontextmanager
    async def launch(self, _host, guest, _files, *, spawned, **_):
        self.log.append("launch to restore" if guest.incoming else "launch to boot")
        spawned(GONE)
        yield self

    async def step(self, what, work, _timeout_s):
        return await work()

    async def load(self, _state):
        self._fail("restore")

    async def wait_for_helper(self, _timeout_s):
        if self.log[-1] == "launch to boot":
            self._fail("boot")

    async def execute(self, _command):
        return {"status": self.status}

    def _fail(self, what):
        if self.failures[what]:
            raise self.failures[what].pop(0)


class Case:
    """An instance that was cloned from a template with a snapshot of its size."""

    def __init__(self, owner):
        self.hypervisor = Noting(owner)
        self.templates = store.VmTemplates(owner.home, "qemu")
        self.tools = Toolchain(self.hypervisor, own(), HOST)
        self.folder = InstanceFolder(self.hypervisor, ONE)
        self.phases = []

    def start(self):
        return start.VmStart(
            self.tools, self.folder, self.templates, lambda phase, _detail: self.phases.append(phase)
        )

    async def run(self, *, ram_clones=True):
        return await self.start().run(tell_nobody, ram_clones=ram_clones)


@pytest.fixture
async def case(owner, monkeypatch):
    async def settle_in(_start, _machine, _reachable, *, restored):
        return "restored" if restored else "booted"

    monkeypatch.setattr(start.VmStart, "_settle_in", settle_in)
    case = Case(owner)
    record = TemplateRecord("t", "g", "qemu", "/p", 0, 1, 512, 1, 0, "u", "/h", None, "image")
    stored = store.Stored(record, 1000, 1000, "/k", "/i", "")
    folder = case.templates.folder("t")
    with templates.building_folder(folder) as building:
        (building / "disk.qcow2").touch()
        os.truncate(building / "disk.qcow2", 1 << 20)
        snapshot = building / "snapshots" / case.tools.snapshot_key(stored, VmSize(1, 512))
        snapshot.mkdir(parents=True)
        (snapshot / "state").touch()
        (building / "template.json").write_bytes(msgspec.json.encode(stored))
        templates.publish(building, "g")

    async def make_overlay(*_):
        pass

    monkeypatch.setattr(start, "make_overlay", make_overlay)
    case.folder.path.mkdir(parents=True)
    case.folder.save(VmRecord(InstanceSpec(ONE, "t", "g", 1, 512, 1)))
    return case


async def test_an_instance_is_restored_and_nothing_has_to_be_ended_for_it(case):
    assert await case.run() == "restored"
    assert case.hypervisor.log == ["launch to restore"]
    assert case.phases == [VmPhase.RESTORE]
    assert case.folder.known().process == GONE


async def test_a_snapshot_that_does_not_work_is_told_and_what_it_left_ends_before_the_boot(case):
    case.hypervisor.failures["restore"] = [BootError("another QEMU's")]
    assert await case.run() == "booted"
    assert case.hypervisor.log == ["launch to restore", "end", "launch to boot"]
    assert case.phases == [VmPhase.RESTORE, VmPhase.BAD_SNAPSHOT, VmPhase.BOOT]


async def test_each_boot_that_crashes_is_ended_before_the_next(case):
    case.hypervisor.failures["boot"] = [PANIC, PANIC]
    assert await case.run(ram_clones=False) == "booted"
    assert case.hypervisor.log == ["launch to boot", *["end", "launch to boot"] * 2]
    assert case.phases == [VmPhase.BOOT, VmPhase.BOOT_AGAIN] * 2 + [VmPhase.BOOT]


async def test_without_a_snapshot_it_boots(case, monkeypatch):
    async def ensure_snapshot(*_):
        raise DriverError("the disk is full")

    monkeypatch.setattr(start, "ensure_snapshot", ensure_snapshot)
    assert await case.run() == "booted"
    assert case.phases == [VmPhase.NO_SNAPSHOT, VmPhase.BOOT]


async def test_what_is_started_ahead_waits_for_its_snapshot_and_is_not_started_twice(case):
    await case.start().ahead()
    assert case.hypervisor.log == ["launch to restore"]
    assert case.folder.known().waiting
    with pytest.raises(DriverError, match="started already"):
        await case.start().ahead()


async def test_a_qemu_that_does_not_wait_is_a_failure(case):
    case.hypervisor.status = "running"
    with pytest.raises(BootError, match="does not wait for a state: running"):
        await case.start().ahead()


async def test_a_qemu_that_waited_and_is_gone_is_replaced_by_another(case):
    await case.start().ahead()
    case.phases.clear()
    assert await case.run() == "restored"
    assert case.hypervisor.log == ["launch to restore", "end", "launch to restore"]
    assert case.phases == [VmPhase.BAD_SNAPSHOT, VmPhase.RESTORE]
    assert not case.folder.known().waiting


async def test_an_instance_that_never_was_is_not_started(case):
    case.folder = InstanceFolder(case.hypervisor, "i-00000000bb")
    with pytest.raises(DriverError, match="does not exist"):
        await case.run()
