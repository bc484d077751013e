"""Checks of the contract for what a VM takes of the host's memory."""

from claude_vm_tests_case import by_sshd, check, needs_isolation

GROWTH_MIB = 100


@check
async def what_runs_takes_memory_and_what_does_not_run_takes_none(case):
    async with case.cloned() as instance_id:
        assert await case.driver.taken_mib(instance_id) == 0
    async with case.started() as (instance_id, _):
        assert await case.driver.taken_mib(instance_id) > 0
    assert await case.driver.taken_mib(instance_id) == 0
    assert await case.driver.taken_mib(case.new_id()) == 0


@check
async def the_next_supervisor_sees_what_a_vm_takes_or_that_it_ended(case):
    async with case.started() as (instance_id, _), case.open_driver(case.owner) as other:
        runs_on = case.driver.name != "sim"  # that one's guests live in its own process
        assert (await other.taken_mib(instance_id) > 0) == runs_on


@needs_isolation
async def a_vm_that_waits_takes_a_part_of_its_memory_and_what_its_guest_writes_is_seen(case):
    async with case.connected() as (instance_id, _, link):
        before = await case.driver.taken_mib(instance_id)
        assert before < case.template.memory_mib
        written = f"head -c {GROWTH_MIB}M /dev/urandom | sudo tee /run/grown > /dev/null"
        assert (await by_sshd(link, written, timeout_s=case.patience_s)).exit_status == 0
        grown = await case.driver.taken_mib(instance_id) - before
        assert grown > 0.8 * GROWTH_MIB, f"{grown} MiB"
