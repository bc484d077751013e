"""Data folders with a template, each built once for the whole run of pytest.

The suites that share one have an `Owner` each, as supervisors do, and leave the template there.
"""

import os
import shutil
import tempfile
from pathlib import Path

import anyio

from claude_vm.drivers import registry
from claude_vm.drivers.api import Owner, TemplateSpec

TEMPLATE = TemplateSpec(
    name="claude-tpl_contract_0123abcd",
    project="/contract",
    cpus=2,
    memory_mib=1024,
    disk_gib=8,
    uid=os.getuid(),
    gid=os.getgid(),
)


def silent(_phase, _detail):
    pass


class DataFolder:
    """A data folder with one template of one driver."""

    def __init__(self, driver_name):
        self.driver_name = driver_name
        self.root = Path(tempfile.mkdtemp(prefix="contract-"))
        self.home = self.root / "home"
        self.home.mkdir()
        # Base images are content-addressed: they come from the cache of the user who runs the tests.
        cache = Path.home() / ".claude-vm" / "cache"
        cache.mkdir(parents=True, exist_ok=True)
        (self.home / "cache").symlink_to(cache)
        (self.home / "sim.json").write_text('{"prestart": true}')  # only the simulation reads it
        with tempfile.TemporaryDirectory(prefix="cv-") as runtime:
            anyio.run(self._build, Owner(self.home, "builder", Path(runtime)))

    async def _build(self, owner):
        async with registry.open_driver(self.driver_name, owner) as driver:
            await driver.build_template(TEMPLATE, silent)

    def close(self):
        for folder in registry.folders(self.home):  # with a long path it is elsewhere
            shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(self.root)


class DataFolders:
    """The data folder of each driver, made when it is first asked for."""

    def __init__(self):
        self._made = {}

    def __getitem__(self, driver_name):
        if driver_name not in self._made:
            self._made[driver_name] = DataFolder(driver_name)
        return self._made[driver_name]

    def close(self):
        for made in self._made.values():
            made.close()
