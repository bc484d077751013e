"""Real guests that break the contract on purpose: the checks for machines must see each of them."""

import platform
import shutil
import time
from contextlib import suppress

import pytest
from claude_vm_tests_suite import CHECKS

from claude_vm.drivers.errors import GuestError
from claude_vm.drivers.qemu import arguments, machine, snapshots

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.vm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        shutil.which(f"qemu-system-{platform.machine()}") is None, reason="QEMU is not installed on this host"
    ),
]

HELPER = "claude-vm-helper"

BREAK = f"""
path=$(systemctl show -p ExecStart --value {HELPER} | grep -o '/[^ ;]*helper.py' | head -n 1)
grep -q '^        self.system.reseed(entropy)$' "$path"
sed -i 's/^        self.system.reseed(entropy)$/        pass/' "$path"
"""

# Right after this the kernel makes its numbers for some seconds from what it has, and from nothing else.
RESEED = "import fcntl; fcntl.ioctl(open('/dev/random', 'wb'), 0x5207)"


@pytest.fixture
def clones_are_not_reseeded(monkeypatch):
    """Let guests have a helper that does not reseed, and no device that tells the kernel of its cloning.

    Other devices make another snapshot, so that no other test gets it.
    """
    devices, warm_up = arguments._devices, snapshots._warm_up

    async def warm_up_and_break(vm, stored):
        await warm_up(vm, stored)
        await snapshots.run(vm, "break", ["sh", "-ec", BREAK], timeout_s=60)
        with suppress(GuestError):  # the one that would answer is killed
            await snapshots.run(
                vm, "restart", ["systemctl", "kill", "--kill-whom=main", "-s", "KILL", HELPER], timeout_s=60
            )
        await vm.wait_for_helper(60)
        await snapshots.run(vm, "last numbers", ["python3", "-c", RESEED], timeout_s=60)

    def without_generation_id(host, guest):
        found = list(devices(host, guest))
        if "vmgenid,guid=auto" in found:
            place = found.index("vmgenid,guid=auto")
            del found[place - 1 : place + 1]
        return found

    monkeypatch.setattr(arguments, "_devices", without_generation_id)
    monkeypatch.setattr(snapshots, "_warm_up", warm_up_and_break)


async def test_clones_that_are_not_reseeded_fail_the_suite(qemu_site, project, clones_are_not_reseeded):
    async with qemu_site.case(project) as case:
        case.patience_s = 300  # their snapshot is made first
        with pytest.raises(AssertionError, match="in common"):
            await CHECKS["clones_side_by_side_have_nothing_random_in_common"](case)


async def test_guests_with_a_clock_that_is_a_little_late_fail_the_suite(qemu_site, project, monkeypatch):
    monkeypatch.setattr(machine, "time", lambda: time.time() - 0.2)
    async with qemu_site.case(project) as case:
        with pytest.raises(AssertionError):
            await CHECKS["clocks_are_right_after_the_start"](case)
