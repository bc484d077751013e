"""Checks of the contract that start no VM."""

import ipaddress
import secrets
import time

import anyio
import pytest
from claude_vm_tests_case import check, refused, silent

from claude_vm.drivers.api import GuestFile, InstanceStatus, Owner
from claude_vm.drivers.errors import TemplateInUseError, TemplateMissingError


@check
async def a_driver_says_what_it_can_do(case):
    capabilities = await case.driver.capabilities()
    assert capabilities == await case.driver.capabilities()
    assert capabilities.accelerator in {"kvm", "tcg", "hvf", "none"}
    assert capabilities.accelerator_reason
    assert capabilities.max_mounts >= 4
    assert ipaddress.ip_address(capabilities.host_address)
    assert len(capabilities.instructions) < 300
    for problem in await case.driver.diagnose():
        assert problem.what
        assert problem.fix


@check
async def a_clone_is_listed_as_stopped_until_it_is_deleted(case):
    async with case.cloned() as instance_id:
        assert (await case.listed())[instance_id] is InstanceStatus.STOPPED
        assert await case.driver.poll(instance_id) is InstanceStatus.STOPPED
        record = next(r for r in await case.driver.list_instances() if r.instance_id == instance_id)
        assert (record.supervisor_id, record.pid) == (case.owner.supervisor_id, None)
    assert instance_id not in await case.listed()
    assert await case.driver.poll(instance_id) is InstanceStatus.ABSENT


@check
async def deleting_a_clone_leaves_nothing(case):
    async with case.cloned():
        pass  # the folders that all instances share are made by the first
    before = await case.settled_traces()
    async with case.cloned():
        case.expect_more(before)
    case.expect_traces(before)


@check
async def deleting_twice_or_what_never_was_is_fine(case):
    async with case.cloned() as instance_id:
        await case.driver.delete(instance_id)
        await case.driver.delete(instance_id)
    await case.driver.delete(case.new_id())


@check
async def unknown_instances_are_absent_or_refused(case):
    unknown = case.new_id()
    assert await case.driver.poll(unknown) is InstanceStatus.ABSENT
    await refused(case.driver.start(unknown, silent))
    await refused(case.driver.prestart(unknown))
    await refused(case.driver.put_files(unknown, [GuestFile("x", b"")]))
    await refused(case.driver.set_clock(unknown))
    assert unknown not in await case.listed()


@check
async def a_missing_template_is_told(case):
    for changes in ({"template": "claude-tpl_none_00000000"}, {"generation": "0000"}):
        instance_id = case.new_id()
        with pytest.raises(TemplateMissingError):
            await case.driver.clone(case.spec(instance_id, **changes))
        await case.driver.delete(instance_id)


@check
async def a_disk_never_shrinks(case):
    instance_id = case.new_id()
    try:
        await refused(case.driver.clone(case.spec(instance_id, disk_gib=1)))
    finally:
        await case.driver.delete(instance_id)
    assert instance_id not in await case.listed()


@check
async def a_cancelled_clone_is_untouched_or_listed(case):
    async with case.cloned():
        pass
    before = await case.settled_traces()
    for rounds in (0, 1, 2, 3, 5, 8, 20, 60):
        instance_id = case.new_id()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(case.driver.clone, case.spec(instance_id))
            for _ in range(rounds):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        if case.traces() != before:
            assert instance_id in await case.listed(), rounds
        await case.driver.delete(instance_id)
        case.expect_traces(before)


@check
async def other_owners_instances_are_untouched(case):
    stranger = Owner(case.owner.home, f"other-{secrets.token_hex(3)}", case.owner.runtime)
    async with case.open_driver(stranger) as other, case.cloned() as instance_id:
        assert instance_id not in await case.listed(other)
        assert await other.poll(instance_id) is InstanceStatus.ABSENT
        await refused(other.start(instance_id, silent))
        await other.delete(instance_id)
        assert instance_id in await case.listed()
        assert stranger.mark != case.owner.mark


@check
async def a_template_that_an_instance_uses_stays(case):
    async with case.cloned() as instance_id:
        with pytest.raises(TemplateInUseError) as caught:
            await case.driver.delete_template(case.template.name)
        assert instance_id in caught.value.instances
        assert [t.name for t in await case.driver.templates()] == [case.template.name]
        await case.driver.collect_garbage()
    async with case.cloned():
        pass  # it can still be cloned


@check
async def templates_tell_when_they_were_used(case):
    (before,) = await case.driver.templates()
    await case.driver.touch_template(case.template.name)
    await case.driver.touch_template("claude-tpl_none_00000000")
    (after,) = await case.driver.templates()
    assert before.last_used_at <= after.last_used_at
    assert abs(after.last_used_at - time.time()) < 10
    assert (after.name, after.generation, after.driver) == (
        case.template.name,
        case.template.generation,
        case.driver.name,
    )


@check
async def a_cancelled_build_leaves_the_former_generation_and_nothing_else(case):
    def names():
        return {
            path.relative_to(case.owner.home).as_posix()
            for path in (case.owner.home / "templates").glob("*/*/*")
            if path.name != "last-used"
        }

    before = names()
    for rounds in (0, 1, 3, 10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(case.build, case.driver, case.template.name)
            for _ in range(rounds):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        (current,) = await case.driver.templates()
        if current.generation == case.template.generation:
            assert names() == before, rounds
        else:  # it was quicker than the cancellation: then the new one is current, and whole
            case.template = current
            await case.driver.collect_garbage()
            before = names()
