"""What only a real VM beneath `limactl` can show, beyond the contract of all drivers.

Runs against the `limactl` that comes first on ``PATH``, whichever that is.
"""

import json
import os
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import textwrap
import time
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from claude_vm.drivers.api import InstanceSpec, InstanceStatus, Mount, Owner, TemplateSpec
from claude_vm.drivers.errors import BootError, DriverError
from claude_vm.drivers.lima import events, hypervisor, instance
from claude_vm.drivers.lima.driver import open_driver
from claude_vm.drivers.lima.home import lima_home
from claude_vm.drivers.lima.processes import of_instance
from claude_vm.drivers.process import ProcessIdentity, find_marked
from claude_vm.drivers.qemu.driver import open_driver as open_qemu
from claude_vm.supervisor.ssh.link import connect

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.vm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        shutil.which("limactl") is None or os.geteuid() == 0,
        reason="limactl is not installed on this host, or refuses to run as root",
    ),
]

CACHE = Path.home() / ".claude-vm" / "cache"
TEMPLATE = {"cpus": 2, "memory_mib": 768, "disk_gib": 8, "uid": os.getuid(), "gid": os.getgid()}
PATIENCE_S = 120.0


def silent(_phase, _detail):
    pass


class Site:
    """A data folder with one template."""

    def __init__(self):
        self.root = Path(tempfile.mkdtemp(prefix="lima-"))
        self.runtime = Path(tempfile.mkdtemp(prefix="cv-"))
        self.owner = Owner(self.root / "home", "lima-test", self.runtime)
        CACHE.mkdir(parents=True, exist_ok=True)
        self.owner.home.mkdir()
        (self.owner.home / "cache").symlink_to(CACHE)
        self.number = 0
        self.lima_home = lima_home(self.owner.home)
        anyio.run(self.build)

    async def build(self):
        async with open_driver(self.owner) as driver:
            await driver.build_template(TemplateSpec(name="t", project="/p", **TEMPLATE), silent)

    def close(self):
        self.expect_nothing_left()
        assert list(self.runtime.iterdir()) == []
        shutil.rmtree(self.lima_home)  # with a long path it is elsewhere
        shutil.rmtree(self.root)
        shutil.rmtree(self.runtime)

    def expect_nothing_left(self):
        assert [path.name for path in self.lima_home.iterdir() if path.name != "_config"] == []
        assert find_marked(self.owner.mark) == []
        assert find_marked(str(self.lima_home)) == []

    def folder(self, instance_id):
        return self.lima_home / f"{self.owner.supervisor_id}.{instance_id}"

    @asynccontextmanager
    async def cloned(self, driver, **changes):
        self.number += 1
        instance_id = f"i-{self.number:010x}"
        (template,) = await driver.templates()
        sizes = {name: getattr(template, name) for name in ("cpus", "memory_mib", "disk_gib")}
        try:
            await driver.clone(InstanceSpec(instance_id, "t", template.generation, **{**sizes, **changes}))
            yield instance_id
        finally:
            with anyio.CancelScope(shield=True):
                await driver.delete(instance_id)

    def limactl(self, *words):
        environ = {**os.environ, "LIMA_HOME": str(self.lima_home)}
        return subprocess.run(
            ["limactl", "--tty=false", *words],
            env=environ,
            capture_output=True,
            check=False,
            timeout=PATIENCE_S,
        )


@pytest.fixture(scope="module")
def site():
    made = Site()
    yield made
    made.close()


@pytest.fixture
async def driver(site):
    async with open_driver(site.owner) as opened:
        yield opened
    site.expect_nothing_left()


async def say(access, command):
    link = await connect(access, timeout_s=PATIENCE_S)
    try:
        done = await link._connection.run(command, encoding=None, timeout=PATIENCE_S)
        return done.stdout.decode()
    finally:
        await link.aclose()


async def until(true):
    """Wait for something that nobody tells us of."""
    with anyio.fail_after(PATIENCE_S):
        while not true():  # noqa: ASYNC110 - as the text says
            await anyio.sleep(0.1)


async def test_an_instance_is_one_of_limas_and_lima_can_use_it(site, driver):
    async with site.cloned(driver) as name:
        access = await driver.start(name, silent)
        assert access.restored
        folder = site.folder(name)
        # It looks every three seconds; nobody of ours waits for it.
        await until(lambda: (told := events.state(folder)) is not None and told.running)
        assert events.state(folder).errors == ()
        listed = await anyio.to_thread.run_sync(site.limactl, "list", "--json")
        (row,) = [json.loads(line) for line in listed.stdout.splitlines()]
        assert (row["name"], row["status"]) == (folder.name, "Running")
        done = await anyio.to_thread.run_sync(site.limactl, "shell", "--workdir", "/", folder.name, "whoami")
        assert (done.returncode, done.stdout.decode().strip()) == (0, access.user), done


async def test_another_driver_of_the_same_supervisor_sees_nothing_of_it(site, driver):
    async with site.cloned(driver) as name:
        await driver.start(name, silent)
        async with open_qemu(site.owner) as other:
            assert await other.list_instances() == []
            assert await other.poll(name) is InstanceStatus.ABSENT
            await other.delete(name)
        assert await driver.poll(name) is InstanceStatus.RUNNING


async def test_four_start_at_the_same_time(site, driver):
    accesses = {}

    async def start(name):
        accesses[name] = await driver.start(name, silent)

    async with site.cloned(driver) as a, site.cloned(driver) as b, site.cloned(driver) as c:
        async with site.cloned(driver) as d, anyio.create_task_group() as tasks:
            for name in (a, b, c, d):
                tasks.start_soon(start, name)
        assert len({access.port for access in accesses.values()}) == 4
        assert all(access.restored for access in accesses.values())
        assert len({await say(accesses[name], "hostname") for name in (a, b, c)}) == 3


async def test_a_port_that_somebody_took_is_replaced_by_another(site, driver, monkeypatch):
    ports = []
    original = instance.free_port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)

        def free_port(_given):
            ports.append(original() if ports else taken.getsockname()[1])
            return ports[-1]

        monkeypatch.setattr(instance, "free_port", free_port)
        async with site.cloned(driver) as name:
            access = await driver.start(name, silent)
            assert ports == [taken.getsockname()[1], access.port]
            assert await say(access, "echo fine") == "fine\n"


async def test_what_a_host_agent_takes_of_the_host_is_bounded_and_its_vm_is_not(site, driver):
    async with site.cloned(driver) as name:
        await driver.start(name, silent)
        bounds = {}
        for process in of_instance(site.folder(name)):
            bounds[process.pid] = [
                resource.prlimit(process.pid, limit)[0]
                for limit in (resource.RLIMIT_DATA, resource.RLIMIT_FSIZE)
            ]
        words = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0] for pid in bounds}
        # QEMU, and the child that answers for its filter
        vm = [pid for pid, word in words.items() if b"qemu-system" in word or word == b"claude-vm-modes"]
        assert [bounds.pop(pid) for pid in vm] == [[resource.RLIM_INFINITY] * 2] * 2
        assert bounds
        assert all(found == [1 << 30, 64 << 20] for found in bounds.values()), (bounds, words)


async def test_a_host_agent_that_is_killed_takes_nothing_with_it_and_leaves_nothing(site, driver):
    async with site.cloned(driver) as name:
        access = await driver.start(name, silent)
        agent = of_instance(site.folder(name))[0]
        os.kill(agent.pid, signal.SIGKILL)
        await until(lambda: not agent.is_alive())
        assert await driver.poll(name) is InstanceStatus.RUNNING
        assert await say(access, "echo fine") == "fine\n"
    site.expect_nothing_left()


async def test_a_limactl_that_is_killed_while_it_starts_is_an_error_and_leaves_nothing(
    site, driver, monkeypatch
):
    async def hand_over(_listener, _order, _descriptors):
        for process in of_instance(site.folder(name)):
            process.kill()
        await anyio.sleep_forever()

    monkeypatch.setattr(hypervisor, "hand_over", hand_over)
    async with site.cloned(driver) as name:
        with pytest.raises(BootError, match="limactl start"):
            await driver.start(name, silent)
    site.expect_nothing_left()


async def test_a_supervisor_that_dies_at_the_handover_leaves_what_the_next_one_deletes(
    site, driver, monkeypatch
):
    class DiedError(Exception):
        pass

    async def hand_over(*_):
        raise DiedError

    monkeypatch.setattr(hypervisor, "hand_over", hand_over)
    async with site.cloned(driver) as name:
        with pytest.raises(DiedError):
            await driver.start(name, silent)
        async with open_driver(site.owner) as successor:
            assert name in {record.instance_id for record in await successor.list_instances()}
            await successor.delete(name)
    site.expect_nothing_left()


async def test_a_vm_that_ends_takes_its_host_agent_along(site, driver):
    async with site.cloned(driver) as name:
        await driver.start(name, silent)
        (record,) = await driver.list_instances()
        agent = of_instance(site.folder(name))[0]
        ProcessIdentity.of(record.pid).kill()
        await until(lambda: not agent.is_alive())
        assert await driver.poll(name) is InstanceStatus.STOPPED


async def test_a_users_own_lima_is_neither_read_nor_touched(site, driver, tmp_path, monkeypatch):
    own = tmp_path / ".lima"
    (own / "_config").mkdir(parents=True)
    (own / "mine").mkdir()
    # It would break every instance that it is read for.
    (own / "_config" / "override.yaml").write_text("vmType: nonsense\ncpus: 1000\n")
    (own / "mine" / "lima.yaml").write_text("nonsense")
    for path in (own, *own.rglob("*")):
        os.utime(path, (1, 1))

    def told():
        return {path: (path.stat().st_atime, path.stat().st_mtime) for path in (own, *own.rglob("*"))}

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LIMA_HOME", raising=False)
    async with site.cloned(driver) as name:
        await driver.start(name, silent)
    found = told()
    # Listing it for this comparison reads folders, so files count.
    assert {path.name for path in found} == {".lima", "_config", "mine", "override.yaml", "lima.yaml"}
    assert all(times == (1, 1) for path, times in found.items() if path.is_file())
    assert all(times[1] == 1 for times in found.values())


async def test_a_data_folder_that_lima_could_not_use_has_its_instances_elsewhere(site, monkeypatch):
    root = site.root / ("long name, with a comma" * 4)
    owner = Owner(root / "home", "sv", site.runtime)
    owner.home.mkdir(parents=True)
    for name in ("templates", "cache"):
        (owner.home / name).symlink_to(site.owner.home / name)
    (site.root / "project, {{ one }}").mkdir()
    mount = Mount(str(site.root / "project, {{ one }}"), "/mnt/here")
    elsewhere = lima_home(owner.home)
    assert not elsewhere.is_relative_to(site.root)
    try:
        async with open_driver(owner) as driver:
            (template,) = await driver.templates()
            sizes = {name: getattr(template, name) for name in ("cpus", "memory_mib", "disk_gib")}
            spec = InstanceSpec("i-00000000ff", "t", template.generation, **sizes, mounts=(mount,))
            try:
                await driver.clone(spec)
                access = await driver.start("i-00000000ff", silent)
                assert await say(access, "echo fine >/mnt/here/file; cat /mnt/here/file") == "fine\n"
            finally:
                await driver.delete("i-00000000ff")
        assert (site.root / "project, {{ one }}" / "file").read_text() == "fine\n"
        assert [path.name for path in elsewhere.iterdir()] == ["_config"]
    finally:
        shutil.rmtree(elsewhere, ignore_errors=True)


@pytest.mark.parametrize("victim", ["limactl", "qemu"])
async def test_whatever_is_killed_at_whatever_moment_of_a_start_nothing_is_left(site, driver, victim):
    begun = time.monotonic()
    async with site.cloned(driver) as name:
        await driver.start(name, silent)
        took = time.monotonic() - begun
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        async with site.cloned(driver) as name:
            with anyio.move_on_after(took * share + 1):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(start_or_fail, driver, name)
                    # The moments are no condition that anything else depends on.
                    await anyio.sleep(took * share)
                    for process in of_instance(site.folder(name)):
                        with suppress(OSError):
                            program = Path(f"/proc/{process.pid}/cmdline").read_text().split("\0")[0]
                            if victim in program:
                                process.kill()
        site.expect_nothing_left()


async def start_or_fail(driver, name):
    with suppress(DriverError):
        await driver.start(name, silent)


async def test_a_flood_on_a_console_does_not_fill_the_hosts_disk(site, driver):
    flood = """
        import contextlib
        for path in ("/dev/ttyS0", "/dev/hvc0"):
            with contextlib.suppress(FileNotFoundError), open(path, "w") as console:
                for number in range(2000):
                    console.write("x" * 99 + "\\n")
                print(path)
        """
    async with site.cloned(driver) as name:
        access = await driver.start(name, silent)
        logs = [path for path in site.folder(name).iterdir() if path.name in events.CONSOLES]
        assert logs
        before = {path: path.stat().st_size for path in logs}
        command = f"sudo -n python3 -c {shlex.quote(textwrap.dedent(flood))}"
        assert (await say(access, command)).split()
        assert {path: path.stat().st_size for path in logs} == before
