"""What the contract suite runs on: data folders with a template, and supervisors of them."""

import contextlib
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import msgspec
import pytest

from claude_vm.drivers import registry
from claude_vm.drivers.api import Owner

HERE = Path(__file__).parent


def load(name, folder=HERE):
    """Load a module of the tests; once."""
    known = sys.modules.get(f"claude_vm_tests_{name}")
    if known is not None:
        return known
    spec = importlib.util.spec_from_file_location(f"claude_vm_tests_{name}", folder / f"{name}.py")
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
data_folder = load("data_folder", HERE.parent)


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def build(driver, name):
    spec = msgspec.structs.replace(data_folder.TEMPLATE, name=name)
    return await driver.build_template(spec, suite.silent)


async def kill(driver, instance_id):
    """End a VM as a crash does."""
    record = next(r for r in await driver.list_instances() if r.instance_id == instance_id)
    if record.pid is None:  # it is simulated
        driver._guests[instance_id].stop_nowait("killed")
    else:
        os.kill(record.pid, signal.SIGKILL)


class Site:
    """A supervisor of a data folder."""

    def __init__(self, folder):
        self.driver_name = folder.driver_name
        self.home = folder.home
        self.runtime = Path(tempfile.mkdtemp(prefix="cv-"))
        self.owner = Owner(self.home, "contract", self.runtime)

    def open_driver(self, owner):
        return registry.open_driver(self.driver_name, owner)

    @contextlib.asynccontextmanager
    async def case(self, project):
        async with self.open_driver(self.owner) as driver:
            (template,) = await driver.templates()
            yield suite.Case(driver, self.owner, template, project, self.open_driver, kill, build)

    def close(self):
        shutil.rmtree(self.runtime)


@pytest.fixture(scope="session")
def sites(data_folders):
    """Return the site of a driver, made when it is first asked for."""
    made = {}

    def get(driver_name):
        if driver_name not in made:
            made[driver_name] = Site(data_folders[driver_name])
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
    with contextlib.ExitStack() as ends:

        def make(driver_name):
            folder = data_folder.DataFolder(driver_name)
            ends.callback(folder.close)
            site = Site(folder)
            ends.callback(site.close)
            return site

        yield make


@pytest.fixture
def project():
    folder = Path(tempfile.mkdtemp(prefix="project-")).resolve()
    yield folder
    shutil.rmtree(folder)
