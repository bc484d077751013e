"""The drivers that a supervisor has open."""

import anyio
import pytest

from claude_vm.drivers.api import Owner
from claude_vm.drivers.programs import system
from claude_vm.supervisor.daemon.drivers import DriverSet

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(("script", "told"), [('{"prestart": true}', [{"sim"}]), ("{}", [])])
async def test_who_opens_a_driver_that_can_start_ahead_is_told_once(tmp_path, script, told):
    (tmp_path / "sim.json").write_text(script)
    heard = []
    async with anyio.create_task_group() as tasks:
        drivers = DriverSet(
            Owner(tmp_path, "sv", tmp_path), tasks, system(), lambda: heard.append(drivers.prestarting)
        )
        for _ in range(2):
            await drivers.get("sim")
        tasks.cancel_scope.cancel()
    assert heard == told
