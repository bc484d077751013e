"""Checks of the contract for VM processes that are started ahead; a driver that can't must say so."""

import anyio
from claude_vm_tests_case import by_sshd, check, needs_isolation, open_link, printed, refused, silent

from claude_vm.drivers.api import InstanceStatus, Mount


async def prestart(case, instance_id):
    """Start ahead; return whether the driver can."""
    if not (await case.driver.capabilities()).prestart:
        await refused(case.driver.prestart(instance_id))
        return False
    with anyio.fail_after(case.patience_s):
        await case.driver.prestart(instance_id)
    return True


async def start(case, instance_id):
    with anyio.fail_after(case.patience_s):
        return await case.driver.start(instance_id, silent)


@check
async def a_prestarted_instance_is_listed_and_deleted_without_a_trace(case):
    async with case.cloned():
        pass
    before = await case.settled_traces()
    async with case.cloned() as instance_id:
        if await prestart(case, instance_id):
            assert instance_id in await case.listed()
            await refused(case.driver.prestart(instance_id))
    assert instance_id not in await case.listed()
    case.expect_traces(before)


@check
async def a_prestarted_instance_starts_like_any_other(case):
    async with case.cloned() as instance_id:
        await prestart(case, instance_id)
        access = await start(case, instance_id)
        async with open_link(access, timeout_s=case.patience_s) as link:
            assert await printed(case, instance_id, link, "echo fine") == b"fine\n"
        assert await case.driver.poll(instance_id) is InstanceStatus.RUNNING
        await refused(case.driver.prestart(instance_id))


@check
async def a_prestarted_instance_is_found_and_deleted_by_the_next_supervisor(case):
    async with case.cloned():
        pass
    before = await case.settled_traces()
    instance_id = case.new_id()
    async with case.open_driver(case.owner) as first:
        await first.clone(case.spec(instance_id))
        if (await first.capabilities()).prestart:
            await first.prestart(instance_id)
    async with case.open_driver(case.owner) as second:
        assert instance_id in await case.listed(second)
        await second.delete(instance_id)
    case.expect_traces(before)


@check
async def a_cancelled_prestart_leaves_an_instance_that_is_listed_and_can_be_deleted(case):
    async with case.cloned():
        pass
    before = await case.settled_traces()
    if not (await case.driver.capabilities()).prestart:
        return
    for delay_s in (0.0, 0.005, 0.02, 0.05, 0.1):
        async with case.cloned() as instance_id:
            with anyio.move_on_after(delay_s):
                await case.driver.prestart(instance_id)
            assert instance_id in await case.listed(), delay_s
        case.expect_traces(before)


@needs_isolation
async def a_prestarted_vm_runs_no_guest_and_is_restored_by_its_start(case):
    (case.project / "early").write_text("early")
    mounts = (Mount(str(case.project), str(case.project)),)
    async with case.cloned(mounts=mounts) as instance_id:
        if not await prestart(case, instance_id):
            return
        assert (await case.listed())[instance_id] is InstanceStatus.RUNNING
        (case.project / "late").write_text("late")
        access = await start(case, instance_id)
        assert access.restored
        async with open_link(access, timeout_s=case.patience_s) as link:
            done = await by_sshd(link, f"cat {case.project}/early {case.project}/late")
            assert done.stdout == b"earlylate"


@needs_isolation
async def a_prestarted_vm_that_was_killed_starts_from_the_beginning(case):
    async with case.cloned() as instance_id:
        if not await prestart(case, instance_id):
            return
        await case.kill(case.driver, instance_id)
        with anyio.fail_after(case.patience_s):
            await case.driver.wait_stopped(instance_id)
        access = await start(case, instance_id)
        async with open_link(access, timeout_s=case.patience_s) as link:
            assert (await by_sshd(link, "echo fine")).stdout == b"fine\n"
