"""What a dead supervisor inside a client left, when its journal is of a newer version."""

import contextlib
import os
import sqlite3

import pytest

from claude_vm.drivers import registry
from claude_vm.drivers.api import InstanceSpec, Owner, TemplateSpec
from claude_vm.supervisor.daemon.adopt import sweep_others
from claude_vm.supervisor.daemon.state.journal import SCHEMA, Journal

pytestmark = pytest.mark.anyio

TEMPLATE = TemplateSpec("t", "/p", cpus=1, memory_mib=64, disk_gib=1, uid=os.getuid(), gid=os.getgid())


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.parametrize("newer", [True, False])
async def test_its_vms_are_deleted_only_where_its_journal_can_be_read(tmp_path, newer):
    owner = Owner(tmp_path / "home", "p1", tmp_path)
    folder = owner.home / "supervisors" / "p1"
    folder.mkdir(parents=True)
    (folder / "lock").touch()
    with Journal.open(folder / "journal.db", "boot"):
        pass
    async with registry.open_driver("sim", owner) as driver:
        template = await driver.build_template(TEMPLATE, lambda *_: None)
        await driver.clone(InstanceSpec("i-0123456789", "t", template.generation, 1, 64, 1))
        if newer:
            with contextlib.closing(sqlite3.connect(folder / "journal.db")) as connection:
                connection.execute(f"PRAGMA user_version={len(SCHEMA) + 1}")

        assert await sweep_others(Owner(owner.home, "daemon", tmp_path), "boot", None) == (0 if newer else 1)

        assert len(await driver.list_instances()) == (1 if newer else 0)
    assert folder.exists() == newer
