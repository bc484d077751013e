"""Records, processes and folders of instances, with a stand-in for QEMU that only sleeps."""

import os
import signal
import subprocess
import sys

import msgspec
import psutil
import pytest

from claude_vm.drivers import templates
from claude_vm.drivers.api import InstanceSpec, InstanceStatus, Mount, Owner, TemplateRecord
from claude_vm.drivers.errors import DriverError, TemplateInUseError, TemplateMissingError
from claude_vm.drivers.process import ProcessIdentity
from claude_vm.drivers.qemu.driver import open_driver
from claude_vm.drivers.qemu.hypervisor import Qemu
from claude_vm.drivers.vm import store
from claude_vm.drivers.vm.instance import InstanceFolder, VmRecord
from claude_vm.drivers.vm.spawn import spawn

pytestmark = pytest.mark.anyio

ONE, TWO = "i-00000000aa", "i-00000000bb"
SLEEP = "import signal; signal.pause()"


@pytest.fixture
def template(owner):
    """A template with a disk, and nothing that could boot."""
    base = owner.home / "base.raw"
    base.parent.mkdir(parents=True)
    base.touch()
    os.truncate(base, 8 << 30)
    record = TemplateRecord(
        name="t", generation="20260101-000000-aaaaaa", driver="qemu", project="/p", created_at=1.0, cpus=2,
        memory_mib=512, disk_gib=8, size_bytes=5, user="claude", home="/h", claude_version=None, image="i",
    )  # fmt: skip
    with templates.building_folder(store.VmTemplates(owner.home, "qemu").folder("t")) as building:
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, building / "disk.qcow2"]
        subprocess.run(argv, check=True)
        stored = store.Stored(record, 1000, 1000, "/k", "/i", "")
        (building / "template.json").write_bytes(msgspec.json.encode(stored))
        templates.publish(building, record.generation)
    return record


def spec(template, instance_id=ONE, **changes):
    facts = {"cpus": 2, "memory_mib": 512, "disk_gib": 8, **changes}
    return InstanceSpec(instance_id=instance_id, template="t", generation=template.generation, **facts)


def folder_of(owner):
    return InstanceFolder(Qemu(owner), ONE)


@pytest.fixture
def stand_in(owner, short):
    """Start processes that look like QEMU's; end them with the test."""
    started = []

    def start(instance_id=ONE, mark=owner.mark):
        argv = [sys.executable, "-c", SLEEP, "-name", f"guest={mark}:{instance_id}"]
        started.append(spawn(argv, short / "log", []))
        # For a moment of its exec, a process has no argument list.
        while not psutil.Process(started[-1].pid).cmdline():
            pass
        return started[-1]

    yield start
    for process in started:
        process.kill()


async def test_a_clone_is_stopped_listed_and_deletable(owner, template):
    async with open_driver(owner) as driver:
        await driver.clone(spec(template))

        assert await driver.poll(ONE) is InstanceStatus.STOPPED
        assert [(found.instance_id, found.status) for found in await driver.list_instances()] == [
            (ONE, InstanceStatus.STOPPED)
        ]
        assert folder_of(owner).path.stat().st_mode & 0o777 == 0o700

        await driver.delete(ONE)
        assert await driver.poll(ONE) is InstanceStatus.ABSENT
        assert await driver.list_instances() == []


async def test_unknown_ids_are_fine(owner):
    async with open_driver(owner) as driver:
        await driver.delete(TWO)
        assert await driver.poll(TWO) is InstanceStatus.ABSENT
        assert await driver.poll("../../etc") is InstanceStatus.ABSENT
        assert await driver.wait_stopped(TWO) == "it does not exist"


@pytest.mark.parametrize("name", ["", "i-0", "../i-0123456789", "i-0123456789/..", "i-012345678G"])
async def test_what_is_no_id_never_becomes_a_path(owner, name):
    async with open_driver(owner) as driver:
        with pytest.raises(DriverError, match="not an instance id"):
            await driver.delete(name)


async def test_a_disk_never_shrinks(owner, template):
    async with open_driver(owner) as driver:
        with pytest.raises(DriverError, match="can't shrink to 7") as caught:
            await driver.clone(spec(template, disk_gib=7))
        assert "--disk 7" in caught.value.hint
        assert await driver.list_instances() == []


async def test_more_mounts_than_slots_are_refused(owner, template):
    mounts = tuple(Mount("/", f"/m{number}") for number in range(9))
    async with open_driver(owner) as driver:
        with pytest.raises(DriverError, match="9 mounts"):
            await driver.clone(spec(template, mounts=mounts))


async def test_a_template_that_is_gone_is_said_to_be(owner, template):
    async with open_driver(owner) as driver:
        await driver.delete_template("t")
        with pytest.raises(TemplateMissingError):
            await driver.clone(spec(template))
        assert not (owner.home / "templates" / "t").exists()


async def test_a_template_in_use_stays(owner, template):
    async with open_driver(owner) as driver:
        await driver.clone(spec(template))
        with pytest.raises(TemplateInUseError) as caught:
            await driver.delete_template("t")
        assert caught.value.instances == (ONE,)
        assert [record.name for record in await driver.templates()] == ["t"]


async def test_garbage_is_old_generations_that_nobody_uses(owner, template):
    old = store.VmTemplates(owner.home, "qemu").folder("t") / template.generation
    with templates.building_folder(old.parent) as building:
        (building / "template.json").write_bytes((old / "template.json").read_bytes())
        templates.publish(building, "20260202-000000-bbbbbb")
    async with open_driver(owner) as driver:
        await driver.clone(spec(template))
        assert await driver.collect_garbage() == []

        await driver.delete(ONE)
        assert await driver.collect_garbage() == [f"template t, generation {template.generation}"]
    assert not old.exists()
    assert (old.parent / "current").resolve().name == "20260202-000000-bbbbbb"


async def test_a_recorded_process_is_ended_and_waited_for(owner, template, stand_in):
    async with open_driver(owner) as driver:
        await driver.clone(spec(template))
        process = stand_in()
        folder_of(owner).save(VmRecord(spec(template), process=process))
        assert await driver.poll(ONE) is InstanceStatus.RUNNING

        await driver.delete(ONE)
        assert not process.is_alive()


async def test_a_process_that_was_not_recorded_any_more_is_found_by_its_mark(owner, template, stand_in):
    """The supervisor died between the spawn and the record."""
    async with open_driver(owner) as driver:
        await driver.clone(spec(template))
        folder_of(owner).save(VmRecord(spec(template), spawning=True))
        process = stand_in()
        assert [found.pid for found in await driver.list_instances()] == [process.pid]

        await driver.delete(ONE)
        assert not process.is_alive()


async def test_a_process_without_a_folder_is_listed_and_ended(owner, stand_in):
    process = stand_in(TWO)
    async with open_driver(owner) as driver:
        assert [found.instance_id for found in await driver.list_instances()] == [TWO]
        assert await driver.poll(TWO) is InstanceStatus.RUNNING
        await driver.delete(TWO)
    assert not process.is_alive()


async def test_instances_of_others_are_neither_seen_nor_touched(owner, stand_in, tmp_path):
    others = [
        Owner(owner.home, "sv-test-2", owner.runtime),
        Owner(tmp_path / "home2", "sv-test", owner.runtime),
    ]
    processes = [stand_in(ONE, other.mark) for other in others]
    async with open_driver(owner) as driver:
        assert await driver.list_instances() == []
        await driver.delete(ONE)
    assert all(process.is_alive() for process in processes)


async def test_a_recorded_pid_of_another_process_is_not_killed(owner, template, stand_in):
    async with open_driver(owner) as driver:
        await driver.clone(spec(template))
        process = stand_in(TWO, "other")
        stale = ProcessIdentity(process.pid, process.started - 1, process.boot)
        folder_of(owner).save(VmRecord(spec(template), process=stale))

        assert await driver.poll(ONE) is InstanceStatus.STOPPED
        await driver.delete(ONE)
    assert process.is_alive()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"spec": 1}'])
async def test_a_damaged_record_can_still_be_listed_and_deleted(owner, template, stand_in, content):
    async with open_driver(owner) as driver:
        await driver.clone(spec(template))
        (folder_of(owner).path / "instance.json").write_bytes(content)
        process = stand_in()
        assert folder_of(owner).load() is None
        assert [found.pid for found in await driver.list_instances()] == [process.pid]

        await driver.delete(ONE)
        assert not process.is_alive()
        assert await driver.list_instances() == []


async def test_the_end_of_a_vm_is_told_with_its_signal(owner, template, stand_in):
    async with open_driver(owner) as driver:
        await driver.clone(spec(template))
        process = stand_in()
        folder_of(owner).save(VmRecord(spec(template), process=process))
        process.kill(signal.SIGKILL)

        assert await driver.wait_stopped(ONE) == "QEMU was killed (SIGKILL)"
