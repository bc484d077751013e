"""A guest's kernel that crashes while it comes up is booted again; any other failure is told at once."""

import pytest

from claude_vm.drivers.errors import BootError
from claude_vm.drivers.vm.machine import BOOTS, booted

pytestmark = pytest.mark.anyio

PANIC = BootError("QEMU ended", detail="[ 1.7] Kernel panic - not syncing: Fatal exception in interrupt")


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Boots:
    """Boots that fail as told, then one that works."""

    def __init__(self, *failures):
        self.failures = list(failures)
        self.log = []
        self.phases = []

    async def __call__(self, stack):
        self.log.append("open")
        stack.callback(self.log.append, "close")
        if self.failures:
            raise self.failures.pop(0)
        return "machine"

    def progress(self, phase, detail):
        assert detail
        self.phases.append(phase)


async def test_a_crash_is_followed_by_another_boot_and_only_the_last_machine_stays_open():
    boots = Boots(PANIC, PANIC)
    async with booted(boots, boots.progress) as machine:
        assert machine == "machine"
        assert boots.log == ["open", "close", "open", "close", "open"]
    assert boots.log[-1] == "close"
    assert boots.phases == ["booting again", "booting again"]


async def test_a_kernel_that_always_crashes_is_given_up():
    boots = Boots(*[PANIC] * BOOTS)
    with pytest.raises(BootError, match="Kernel panic"):
        async with booted(boots, boots.progress):
            pass
    assert boots.log == ["open", "close"] * BOOTS


async def test_another_failure_is_not_tried_again():
    boots = Boots(BootError("QEMU ended", detail="no such disk"))
    with pytest.raises(BootError, match="no such disk"):
        async with booted(boots, boots.progress):
            pass
    assert boots.log == ["open", "close"]


async def test_what_fails_after_the_boot_is_not_taken_for_one():
    boots = Boots()
    with pytest.raises(BootError):
        async with booted(boots, boots.progress):
            raise PANIC
    assert boots.log == ["open", "close"]
