"""What only a real QEMU and a real guest can show, beyond the contract of all drivers."""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import pytest
from claude_vm_tests_data_folder import TEMPLATE

from claude_vm.drivers import templates
from claude_vm.drivers.api import InstanceSpec, Mount, Owner
from claude_vm.drivers.errors import GuestError
from claude_vm.drivers.process import find_marked
from claude_vm.drivers.qemu.driver import open_driver
from claude_vm.drivers.qemu.hypervisor import Qemu
from claude_vm.drivers.vm import store
from claude_vm.drivers.vm.instance import InstanceFolder
from claude_vm.drivers.vm.phases import VmPhase
from claude_vm.supervisor.ssh.link import connect

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.vm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        shutil.which(f"qemu-system-{platform.machine()}") is None, reason="QEMU is not installed on this host"
    ),
]


def silent(_phase, _detail):
    pass


class Site:
    """A supervisor of a data folder with one template; `phases` are what the driver told of its progress."""

    def __init__(self, folder):
        self.root = Path(tempfile.mkdtemp(prefix="vm-"))
        self.runtime = Path(tempfile.mkdtemp(prefix="cv-"))
        self.owner = Owner(folder.home, "vm-test", self.runtime)
        self.project = self.root / "project, one: ü"
        self.project.mkdir()
        self.phases = []
        self.number = 0

    @property
    def template_folder(self):
        return store.VmTemplates(self.owner.home, "qemu").folder(TEMPLATE.name)

    async def build(self):
        async with open_driver(self.owner) as driver:
            await driver.build_template(TEMPLATE, silent)

    def close(self):
        assert find_marked(self.owner.mark) == []
        assert list(self.runtime.iterdir()) == []
        shutil.rmtree(self.root)
        shutil.rmtree(self.runtime)

    @asynccontextmanager
    async def guest(self, driver, **changes):
        """Start an instance and connect to it; delete it in the end."""
        (template,) = await driver.templates()
        self.number += 1
        facts = {name: getattr(template, name) for name in ("cpus", "memory_mib", "disk_gib")} | changes
        spec = InstanceSpec(f"i-{self.number:010x}", template.name, template.generation, **facts)
        self.phases = []
        await driver.clone(spec)
        try:
            access = await driver.start(spec.instance_id, lambda phase, _detail: self.phases.append(phase))
            link = await connect(access, timeout_s=60)
            try:
                yield spec.instance_id, access, link
            finally:
                await link.aclose()
        finally:
            with anyio.CancelScope(shield=True):
                await driver.delete(spec.instance_id)

    def mounts(self):
        return (Mount(str(self.project), str(self.project)),)


@pytest.fixture(scope="module")
def site(data_folders):
    site = Site(data_folders["qemu"])
    yield site
    site.close()


async def by_sshd(link, command, **options):
    """Run a small command by the guest's sshd, which no session of ours has a part in."""
    return await link._connection.run(command, encoding=None, **options)


async def say(link, script):
    """Run a script as root in the guest, and return what it printed."""
    done = await by_sshd(link, "sudo -n python3 -", input=textwrap.dedent(script).encode(), timeout=120)
    assert done.stderr == b""
    return done.stdout.decode().strip()


async def test_an_idle_guest_is_not_woken_for_statistics(site):
    script = """
        import os
        names = ("vm/stat_interval", "vm/compaction_proactiveness", "kernel/watchdog")
        print([int(open(f"/proc/sys/{name}").read()) for name in names], os.path.exists("/proc/pressure"))
    """
    async with open_driver(site.owner) as driver, site.guest(driver) as (_, _, link):
        assert await say(link, script) == "[60, 0, 0] False"


async def test_a_guests_root_can_not_leave_what_runs_as_its_owner_or_group_in_a_mount(site):
    script = f"""
        import os, stat, struct, subprocess
        os.umask(0)
        mount = ["mount", "-t", "9p", "slot0", {str(site.project)!r}, "-o"]
        def attempt(work):
            try:
                work()
            except OSError as error:
                return error.errno
            return 0
        def acl(*entries):
            return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e, 0xFFFFFFFF) for e in entries)
        for dialect in ("9p2000.L", "9p2000.u"):
            os.chdir("/")
            subprocess.run(["umount", mount[4]], check=True)
            subprocess.run([*mount, "trans=virtio,version=" + dialect], check=True)
            os.mkdir(f"{{mount[4]}}/{{dialect}}")
            os.chdir(f"{{mount[4]}}/{{dialect}}")
            open("tool", "w").close()
            found = [
                *(attempt(lambda: os.chmod("tool", mode)) for mode in (0o4755, 0o2755, 0o6755, 0o2644)),
                attempt(lambda: os.fchmod(open("tool").fileno(), 0o2755)),
                attempt(lambda: os.setxattr("tool", "system.posix_acl_access", acl((1, 7), (4, 5), (32, 5)))),
                attempt(lambda: os.mknod("device", stat.S_IFCHR | 0o666, os.makedev(1, 3))),
                attempt(lambda: os.setxattr("tool", "security.capability", bytes([1, 0, 0, 2] + [0] * 16))),
                attempt(lambda: os.chmod("tool", 0o755)),
            ]
            for mode in (0o4755, 0o2755):  # refused, or made without the bit
                attempt(lambda: os.close(os.open(f"made-{{mode}}", os.O_CREAT | os.O_WRONLY, mode)))
                attempt(lambda: os.mknod(f"node-{{mode}}", stat.S_IFREG | mode))
            os.mkdir("shared")
            os.chmod("shared", 0o2775)
            print(found[-1], all(found[:-1]), oct(os.stat("shared").st_mode & 0o2000))
        """
    async with open_driver(site.owner) as driver, site.guest(driver, mounts=site.mounts()) as (_, _, link):
        assert await say(link, script) == "0 True 0o2000\n0 True 0o2000"

    left = [path for path in site.project.rglob("*") if not path.is_dir()]
    assert {path.name for path in left} >= {"tool"}
    for path in left:
        assert path.is_file()
        assert path.lstat().st_mode & 0o6000 == 0
        assert path.lstat().st_uid == os.getuid()
        assert "security.capability" not in os.listxattr(path)


async def test_another_size_gets_a_snapshot_of_its_own_once_and_a_larger_disk_is_grown(site):
    script = "import os; s = os.statvfs('/'); print(os.cpu_count(), round(s.f_blocks * s.f_frsize / 2**30))"
    async with open_driver(site.owner) as driver:
        async with site.guest(driver, cpus=1, memory_mib=640, disk_gib=11) as (_, access, link):
            assert access.restored
            assert VmPhase.SNAPSHOT in site.phases
            assert await say(link, script) == "1 11"
            memory = int(await say(link, "print(open('/proc/meminfo').read().split()[1])"))
            assert 500 * 1024 < memory < 640 * 1024
        async with site.guest(driver, cpus=1, memory_mib=640) as (_, access, link):
            assert access.restored
            assert VmPhase.SNAPSHOT not in site.phases
            assert await say(link, script) == "1 8"


async def test_a_snapshot_that_can_not_be_read_is_no_end_but_a_boot(site):
    async with open_driver(site.owner) as driver:
        (template,) = await driver.templates()
        folder = site.template_folder / template.generation / "snapshots"
        # The first one is that of the template's own size.
        state = min(folder.glob("*/state"), key=lambda path: path.stat().st_mtime)
        good = state.read_bytes()
        state.write_bytes(good[: len(good) // 2])
        try:
            async with site.guest(driver, mounts=site.mounts()) as (_, access, link):
                assert not access.restored
                assert VmPhase.BAD_SNAPSHOT in site.phases
                assert await say(link, "print(1)") == "1"
        finally:
            state.write_bytes(good)


def memory_of(pid, ram):
    """Return the resident and the private KiB of a process's mappings of a file."""
    resident = private = 0
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, *rest = line.split(maxsplit=5)
        if not name.endswith(":"):
            inside = bool(rest[4:]) and rest[4] == str(ram)
        elif inside and name == "Rss:":
            resident += int(rest[0])
        elif inside and name == "Anonymous:":
            private += int(rest[0])
    return resident, private


@pytest.mark.skipif(sys.platform != "linux", reason="what processes share is told by Linux's /proc")
async def test_clones_share_the_memory_that_they_have_not_changed_and_leave_the_snapshot_as_it_was(site):
    async with open_driver(site.owner) as driver:
        (template,) = await driver.templates()
        folder = site.template_folder / template.generation / "snapshots"
        # The first one is that of the template's own size.
        ram = min(folder.glob("*/ram"), key=lambda path: path.stat().st_mtime).resolve()
        with ram.open("rb") as file:
            before = hashlib.file_digest(file, "sha256").digest()
        async with site.guest(driver) as (one, _, _), site.guest(driver) as (other, _, _):
            for record in await driver.list_instances():
                assert record.instance_id in {one, other}
                resident, private = memory_of(record.pid, ram)
                assert 0 < private < resident
                assert private < TEMPLATE.memory_mib * 1024 // 2
        with ram.open("rb") as file:
            assert hashlib.file_digest(file, "sha256").digest() == before


async def test_a_new_generation_leaves_the_clones_of_the_old_one_whole(site):
    some = "find /usr/lib -name '*.so*' -type f -size -200k | sort | head -n 100"
    whole = f"cat $({some}) 2>/dev/null | sha256sum"
    async with open_driver(site.owner) as driver:
        (old,) = await driver.templates()
        async with site.guest(driver) as (_, _, link):
            await site.build()
            (new,) = await driver.templates()
            assert new.generation != old.generation
            assert [text for text in await driver.collect_garbage() if "template" in text] == []
            # Blocks that this clone has never read come from the old generation's disk.
            await say(link, "open('/proc/sys/vm/drop_caches', 'w').write('3')")
            before = (await by_sshd(link, whole, timeout=300)).stdout
            async with site.guest(driver) as (_, _, other):
                assert (await by_sshd(other, whole, timeout=300)).stdout == before
        assert [text for text in await driver.collect_garbage() if "template" in text] == [
            f"template {TEMPLATE.name}, generation {old.generation}"
        ]


def kill_when_its_vm_runs(argv, mark):
    """Run a build, and kill it."""
    with subprocess.Popen(argv) as builder:
        while not find_marked(mark):
            assert builder.poll() is None
            time.sleep(0.05)
        builder.kill()


async def test_what_a_killed_builder_leaves_is_removed(site):
    script = f"""
        import anyio, sys
        from pathlib import Path
        from claude_vm.drivers.api import Owner, TemplateSpec
        from claude_vm.drivers.qemu.driver import open_driver
        async def main():
            owner = Owner(Path({str(site.owner.home)!r}), "vm-test", Path({str(site.runtime)!r}))
            async with open_driver(owner) as driver:
                spec = TemplateSpec(**{msgspec.structs.asdict(TEMPLATE)!r})
                await driver.build_template(spec, lambda *_: None)
        anyio.run(main)
        """
    argv = [sys.executable, "-c", textwrap.dedent(script)]
    await anyio.to_thread.run_sync(kill_when_its_vm_runs, argv, f"{site.owner.mark}:build")

    async with open_driver(site.owner) as driver:
        (before,) = await driver.templates()
        assert find_marked(f"{site.owner.mark}:build")
        removed = await driver.collect_garbage()
        assert any("interrupted build" in text for text in removed)
        assert find_marked(site.owner.mark) == []
        assert await driver.templates() == [before]
    assert list(site.template_folder.glob(f"{templates.BUILDING}*")) == []


async def test_a_flood_on_the_console_does_not_fill_the_hosts_disk(site):
    script = """
        with open("/dev/ttyS0", "w") as console:
            for number in range(3000):
                console.write("x" * 99 + "\\n")
        print("written")
        """
    async with open_driver(site.owner) as driver, site.guest(driver) as (name, _, link):
        log = InstanceFolder(Qemu(site.owner), name).files.serial
        before = log.stat().st_size
        assert await say(link, script) == "written"
        assert log.stat().st_size == before


async def test_a_helper_that_was_killed_goes_on_as_the_same_guest(site):
    async with open_driver(site.owner) as driver, site.guest(driver) as (name, access, link):
        words = ["systemctl", "kill", "--kill-whom=main", "-s", "KILL", "claude-vm-helper"]
        await say(link, f"import subprocess; subprocess.run({words!r}, check=True)")
        # Its channel is gone with it; systemd starts it again after a second, and the port waits for it.
        with suppress(GuestError):
            await driver.set_clock(name)
        await driver.set_clock(name)
        again = await connect(access, timeout_s=60)
        assert (await by_sshd(again, "echo again", timeout=60)).stdout == b"again\n"
        await again.aclose()
