"""Every driver against the contract."""

import os
import platform
import shutil

import pytest
from claude_vm_tests_suite import CHECKS, NEED_ISOLATION

from claude_vm.drivers.registry import DRIVERS

pytestmark = pytest.mark.anyio

VM = (pytest.mark.vm, pytest.mark.timeout(900))  # the first one builds the template
NO_QEMU = shutil.which(f"qemu-system-{platform.machine()}") is None
NO_LIMA = shutil.which("limactl") is None or os.geteuid() == 0

MARKS = {
    "sim": (),
    "qemu": (*VM, pytest.mark.skipif(NO_QEMU, reason="QEMU is not installed on this host")),
    "lima": (
        *VM,
        pytest.mark.skipif(
            NO_LIMA, reason="limactl is not installed on this host, or refuses to run as root"
        ),
    ),
}

# What these look at is the guest and what all drivers share: with the stand-in it is QEMU's own once more.
OF_THE_GUEST = ("checks_guest", "checks_mounts", "checks_session")


def marks(driver, check):
    real = driver == "lima" and check.__module__.endswith(OF_THE_GUEST)
    return [*MARKS[driver], *[pytest.mark.real_limactl] * real]


@pytest.mark.parametrize(
    ("site", "name"),
    [
        pytest.param(driver, name, marks=marks(driver, check), id=f"{driver}-{name}")
        for driver, declared in DRIVERS.items()
        for name, check in CHECKS.items()
        if declared.isolates or name not in NEED_ISOLATION
    ],
    indirect=["site"],
)
async def test_guests_keep_the_contract(site, project, name):
    async with site.case(project) as case:
        await CHECKS[name](case)
