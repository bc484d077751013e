"""Templates for the contract suite, each built once for the whole test run."""

import contextlib
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import anyio
import pytest

from claude_vm.drivers import registry
from claude_vm.drivers.api import Owner, TemplateSpec

TEMPLATE = "claude-tpl_contract_0123abcd"


def load(name):
    """Load a module that lies beside this file."""
    known = sys.modules.get(f"claude_vm_tests_{name}")
    if known is not None:
        return known
    spec = importlib.util.spec_from_file_location(
        f"claude_vm_tests_{name}", Path(__file__).with_name(f"{name}.py")
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


for _name in (
    "case",
    "handshake",
    "checks_guest",
    "checks_machine",
    "checks_memory",
    "checks_mounts",
    "checks_prestart",
    "checks_records",
    "checks_session",
):
    load(_name)
suite = load("suite")


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def build(driver, name):
    spec = TemplateSpec(
        name=name,
        project="/contract",
        cpus=2,
        memory_mib=1024,
        disk_gib=8,
        uid=os.getuid(),
        gid=os.getgid(),
    )
    return await driver.build_template(spec, suite.silent)


async def kill(driver, instance_id):
    """End a VM as a crash does."""
    record = next(r for r in await driver.list_instances() if r.instance_id == instance_id)
    if record.pid is None:  # it is simulated
        driver._guests[instance_id].stop_nowait("killed")
    else:
        os.kill(record.pid, signal.SIGKILL)


class Site:
    """A data folder with one template of one driver."""

    def __init__(self, driver_name):
        self.driver_name = driver_name
        self.root = Path(tempfile.mkdtemp(prefix="contract-"))
        self.home = self.root / "home"
        self.runtime = Path(tempfile.mkdtemp(prefix="cv-"))
        self.home.mkdir()
        # Base images are content-addressed: they come from the cache of the user who runs the tests.
        cache = Path.home() / ".claude-vm" / "cache"
        cache.mkdir(parents=True, exist_ok=True)
        (self.home / "cache").symlink_to(cache)
        (self.home / "sim.json").write_text('{"prestart": true}')  # only the simulation reads it
        self.owner = Owner(self.home, "contract", self.runtime)
        self.template = anyio.run(self._build)

    async def _build(self):
        async with registry.open_driver(self.driver_name, self.owner) as driver:
            return await build(driver, TEMPLATE)

    def open_driver(self, owner):
        return registry.open_driver(self.driver_name, owner)

    @contextlib.asynccontextmanager
    async def case(self, project):
        async with self.open_driver(self.owner) as driver:
            (template,) = await driver.templates()
            yield suite.Case(driver, self.owner, template, project, self.open_driver, kill, build)

    def close(self):
        for folder in registry.folders(self.home):  # with a long path it is elsewhere
            shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(self.root)
        shutil.rmtree(self.runtime)


@pytest.fixture(scope="session")
def sites():
    """Return the site of a driver, made when it is first asked for."""
    made = {}

    def get(driver_name):
        if driver_name not in made:
            made[driver_name] = Site(driver_name)
        return made[driver_name]

    yield get
    for site in made.values():
        site.close()


@pytest.fixture
def site(request, sites):
    return sites(request.param)


@pytest.fixture
def qemu_site(sites):
    return sites("qemu")


@pytest.fixture
def new_site():
    """Make sites that no other test uses."""
    sites = []

    def make(driver_name):
        sites.append(Site(driver_name))
        return sites[-1]

    yield make
    for site in sites:
        site.close()


@pytest.fixture
def project():
    folder = Path(tempfile.mkdtemp(prefix="project-")).resolve()
    yield folder
    shutil.rmtree(folder)
