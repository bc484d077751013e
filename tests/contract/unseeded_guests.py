"""Guests that are not reseeded fail the contract suite. For ``make chaos``.

Not among the usual tests, because it does not always come out: how much of the kernel's random state two
clones still share when they are asked depends on what else it has mixed in by then.
"""

import platform
import shutil

import pytest
from claude_vm_tests_suite import CHECKS

from claude_vm.drivers.qemu import arguments
from claude_vm.drivers.vm import snapshots

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.vm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        shutil.which(f"qemu-system-{platform.machine()}") is None, reason="QEMU is not installed on this host"
    ),
]

# On the disk of a template, so that only what is booted from it has a helper that does not reseed.
BREAK = """
grep -q '^        self.system.reseed(entropy)$' /usr/lib/claude-vm/helper/operations.py
sed -i 's/^        self.system.reseed(entropy)$/        pass/' /usr/lib/claude-vm/helper/operations.py
rm -r /usr/lib/claude-vm/helper/__pycache__
"""

# The kernel makes new random state by itself at second 1, 2, 3, 4, 6, 9 ... 42, 63, 94 and 141
# of its life, then once a minute (crng_reseed_interval in drivers/char/random.c). So for half a minute after
# this, it makes numbers from what it has, and from nothing else.
RESEED = """
import fcntl, time
now, due = float(open("/proc/uptime").read().split()[0]), 1
while due < now or due < 60:
    due += max(1, due // 2) if due < 120 else 60
time.sleep(due + 1 - now)
fcntl.ioctl(open("/dev/random", "wb"), 0x5207)
"""


@pytest.fixture
async def not_reseeded(qemu_site, project, monkeypatch):
    """A case whose guests have a helper that does not reseed, and no device that tells of their cloning."""
    warm_up = snapshots._warm_up

    async def warm_up_and_break(vm, user):
        await warm_up(vm, user)
        await vm.run("break", ["sh", "-ec", BREAK], timeout_s=60)

    async def warm_up_and_reseed(vm, user):
        await warm_up(vm, user)
        await vm.run("last numbers", ["python3", "-c", RESEED], timeout_s=120)

    async with qemu_site.case(project) as case:
        with monkeypatch.context() as patch:
            patch.setattr(snapshots, "_warm_up", warm_up_and_break)
            case.template = await case.build(case.driver, "claude-tpl_unseeded_0123abcd")
        # Other devices: another snapshot, of a machine that is booted from that disk.
        monkeypatch.setattr(arguments, "generation_id", lambda _host: ())
        monkeypatch.setattr(snapshots, "_warm_up", warm_up_and_reseed)
        case.patience_s = 300
        try:
            yield case
        finally:
            await case.driver.delete_template(case.template.name)


async def test_clones_that_are_not_reseeded_fail_the_suite(not_reseeded):
    with pytest.raises(AssertionError, match="in common"):
        await CHECKS["clones_side_by_side_have_nothing_random_in_common"](not_reseeded)
