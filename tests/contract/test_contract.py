"""Every driver against the contract."""

import os
import platform
import shutil

import pytest
from claude_vm_tests_suite import CHECKS, NEED_ISOLATION

pytestmark = pytest.mark.anyio

# What these look at is the guest and what all drivers share: with the stand-in it is QEMU's own once more.
OF_THE_GUEST = ("checks_guest", "checks_mounts", "checks_session")


@pytest.mark.parametrize("name", [name for name in CHECKS if name not in NEED_ISOLATION])
async def test_simulated_guests_keep_the_contract(sim_site, project, name):
    async with sim_site.case(project) as case:
        await CHECKS[name](case)


@pytest.mark.vm
@pytest.mark.timeout(900)  # the first one builds the template
@pytest.mark.skipif(
    shutil.which(f"qemu-system-{platform.machine()}") is None, reason="QEMU is not installed on this host"
)
@pytest.mark.parametrize("name", CHECKS)
async def test_qemu_guests_keep_the_contract(qemu_site, project, name):
    async with qemu_site.case(project) as case:
        await CHECKS[name](case)


@pytest.mark.vm
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    shutil.which("limactl") is None or os.geteuid() == 0,
    reason="limactl is not installed on this host, or refuses to be run by root",
)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.real_limactl] * check.__module__.endswith(OF_THE_GUEST))
        for name, check in CHECKS.items()
    ],
)
async def test_guests_of_lima_keep_the_contract(lima_site, project, name):
    async with lima_site.case(project) as case:
        await CHECKS[name](case)
