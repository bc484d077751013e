"""Checks of the contract with a running guest."""

import contextlib
import hashlib
import os
import shlex
import time

import anyio
import msgspec
import pytest
from claude_vm_tests_case import by_sshd, check, open_link, printed, refused, session, silent

from claude_vm.drivers.api import GuestFile, InstanceStatus
from claude_vm.supervisor.ssh.errors import SshError
from claude_vm.supervisor.ssh.launch import LaunchMode


@check
async def a_started_instance_is_reached_by_its_own_key_only(case):
    async with case.connected() as (instance_id, access, link):
        told = await printed(case, instance_id, link, "whoami; echo $HOME; pwd")
        assert told.decode().split() == [access.user, access.home, access.home]
        assert access.address == "127.0.0.1"
        assert access.client_key.stat().st_mode & 0o777 == 0o600
        assert access.client_key.is_relative_to(case.owner.home)
        assert await case.driver.poll(instance_id) is InstanceStatus.RUNNING
        assert (await case.listed())[instance_id] is InstanceStatus.RUNNING
        await refused(case.driver.clone(case.spec(instance_id)))


@check
async def deleting_a_running_vm_ends_all_that_it_had(case):
    async with case.cloned():
        pass
    before = await case.settled_traces()
    async with (
        case.connected() as (instance_id, _, link),
        session(
            case, instance_id, link, LaunchMode.EXEC, ["sh", "-c", "echo ready; exec sleep 1000"]
        ) as process,
    ):
        assert await process.read_stdout(100)
        with anyio.fail_after(case.patience_s):
            await case.driver.delete(instance_id)
            await link.wait_closed()
        case.expect_traces(before)
        assert await case.driver.poll(instance_id) is InstanceStatus.ABSENT
        assert instance_id not in await case.listed()
    case.expect_traces(before)


@check
async def the_death_of_a_vm_is_noticed(case):
    async with case.started() as (instance_id, _):
        reasons = []

        async def wait():
            reasons.append(await case.driver.wait_stopped(instance_id))

        with anyio.move_on_after(case.patience_s):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                assert not reasons
                await case.kill(case.driver, instance_id)
        assert len(reasons) == 1
        assert reasons[0]
        assert await case.driver.poll(instance_id) is InstanceStatus.STOPPED
        assert (await case.listed())[instance_id] is InstanceStatus.STOPPED
        await refused(case.driver.put_files(instance_id, [GuestFile("x", b"")]))


@check
async def a_cancelled_start_leaves_an_instance_that_is_listed_and_can_be_deleted(case):
    async with case.cloned():
        pass
    before = await case.settled_traces()
    began = time.monotonic()
    async with case.started():
        duration = time.monotonic() - began
    for share in (0.0, 0.1, 0.4, 0.8):
        async with case.cloned() as instance_id:
            with anyio.move_on_after(duration * share):
                await case.driver.start(instance_id, silent)
            assert instance_id in await case.listed(), share
        case.expect_traces(before)


@check
async def instances_are_found_by_the_next_supervisor(case):
    async with case.cloned():
        pass
    before = await case.settled_traces()
    instance_id = case.new_id()
    async with case.open_driver(case.owner) as first:
        await first.clone(case.spec(instance_id))
        with anyio.fail_after(case.patience_s):
            await first.start(instance_id, silent)
    async with case.open_driver(case.owner) as second:
        try:
            isolates = (await second.capabilities()).isolates
            # A simulated VM dies with its process; that is the one point that it may break.
            expected = InstanceStatus.RUNNING if isolates else InstanceStatus.STOPPED
            assert (await case.listed(second)).get(instance_id) is expected
        finally:
            await second.delete(instance_id)
    case.expect_traces(before)


@check
async def several_instances_start_at_the_same_time(case):
    async with contextlib.AsyncExitStack() as stack:
        ids = [await stack.enter_async_context(case.cloned()) for _ in range(3)]
        accesses = {}

        async def start(instance_id):
            accesses[instance_id] = await case.driver.start(instance_id, silent)

        with anyio.fail_after(case.patience_s):
            async with anyio.create_task_group() as tasks:
                for instance_id in ids:
                    tasks.start_soon(start, instance_id)
        assert len({access.port for access in accesses.values()}) == 3
        await case.driver.delete(ids[0])
        assert await case.driver.poll(ids[1]) is InstanceStatus.RUNNING


@check
async def who_connects_as_soon_as_it_is_told_how_is_answered_by_a_whole_guest(case):
    told, answers = [], []

    async def connect(access):
        async with open_link(access, timeout_s=case.patience_s) as link:
            answers.append((await by_sshd(link, "cat /proc/sys/kernel/hostname")).stdout)

    async with case.cloned() as instance_id:
        async with anyio.create_task_group() as tasks:

            def reachable(access):
                told.append(access)
                tasks.start_soon(connect, access)

            with anyio.fail_after(case.patience_s):
                access = await case.driver.start(instance_id, silent, reachable)
            assert told in ([], [access])
        if told:
            async with open_link(access, timeout_s=case.patience_s) as link:
                name = (await by_sshd(link, "cat /proc/sys/kernel/hostname")).stdout
            assert answers == [name]


@check
async def no_two_clones_share_a_key(case):
    async with case.started() as (_, one), case.started() as (_, two):
        assert one.host_key.split()[:2] != two.host_key.split()[:2]
        assert one.client_key != two.client_key
        assert one.client_key.read_bytes() != two.client_key.read_bytes()
        with pytest.raises(SshError):
            async with open_link(msgspec.structs.replace(one, port=two.port), timeout_s=case.patience_s):
                pass


@check
async def files_arrive_in_the_guest_as_they_were_given(case):
    big = os.urandom(1_500_000)
    hostile = "a b'\"\n$(id);-é"
    files = [
        GuestFile("plain", b"x\0\xff"),
        GuestFile(f"deep/{hostile}/file", b"deep", mode=0o640),
        GuestFile("script", b"#!/bin/sh\necho ran\n", mode=0o755),
        GuestFile("/run/claude-vm/contract/secret", b"secret"),
        GuestFile("big", big[:700_000]),
        GuestFile("big", big[700_000:], append=True),
        GuestFile("plain", b"y"),
    ]
    async with case.connected() as (instance_id, access, link):
        await case.driver.put_files(instance_id, files)
        tell = (
            "stat -c '%a %U' plain deep/*/file script; cat plain; ./script; sha256sum <big; cat deep/*/file"
        )
        done = await printed(case, instance_id, link, tell)
        user = access.user
        expected = f"600 {user}\n640 {user}\n755 {user}\nyran\n{hashlib.sha256(big).hexdigest()}  -\ndeep"
        assert done.decode() == expected
        named = shlex.quote(f"deep/{hostile}/file")
        assert await printed(case, instance_id, link, f"cat {named}") == b"deep"


@check
async def clocks_are_set_on_request(case):
    async with case.connected() as (instance_id, _, link):
        await case.driver.set_clock(instance_id)
        before = time.time()
        seen = float(await printed(case, instance_id, link, "date +%s.%N"))
        assert before - 0.5 < seen < time.time() + 0.5
