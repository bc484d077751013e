"""Real guests that break the contract on purpose: the checks for machines must see each of them."""

import platform
import shutil
import time

import pytest
from claude_vm_tests_suite import CHECKS

from claude_vm.drivers.vm import channel, identity

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.vm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        shutil.which(f"qemu-system-{platform.machine()}") is None, reason="QEMU is not installed on this host"
    ),
]


async def test_guests_with_a_clock_that_is_a_little_late_fail_the_suite(qemu_site, project, monkeypatch):
    for module in (identity, channel):
        monkeypatch.setattr(module, "time", lambda: time.time() - 0.2)
    async with qemu_site.case(project) as case:
        with pytest.raises(AssertionError):
            await CHECKS["clocks_are_right_after_the_start"](case)
