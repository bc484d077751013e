"""Checks of the contract for guests that are machines of their own."""

import time

import anyio
import anyio.to_thread
from claude_vm_tests_case import by_sshd, needs_isolation, python, session
from claude_vm_tests_handshake import chosen_at_random

from claude_vm.drivers.api import GuestFile
from claude_vm.supervisor.ssh.launch import LaunchMode


@needs_isolation
async def clones_differ_in_all_that_identifies_a_machine(case):
    tell = (
        "cat /etc/machine-id; hostname; head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo; "
        "cat /proc/sys/kernel/random/uuid; getent hosts $(hostname) >/dev/null && echo known"
    )
    seen = []
    for _ in range(2):
        async with case.connected() as (_, _, link):
            seen.append((await by_sshd(link, tell)).stdout.decode().split())
    assert len(seen[0]) == 5
    assert seen[0].pop() == seen[1].pop() == "known"
    assert not set(seen[0]) & set(seen[1])


_NUMBERS = """
import os
# not getrandom(2): its vDSO stretches one number of the kernel for a whole program
source = os.open("/dev/urandom", os.O_RDONLY)
for processor in sorted(os.sched_getaffinity(0)):
    os.sched_setaffinity(0, {processor})
    print(*(os.read(source, 8).hex() for _ in range(1000)))
"""


@needs_isolation
async def clones_side_by_side_have_nothing_random_in_common(case):
    """Numbers, and what the SSH server chooses for the keys of a session.

    Each processor has a sequence of numbers of its own, in which two guests that share it may be at different
    places.
    """
    seen = [set(), set()]
    async with (
        case.connected() as (_, first_access, first),
        case.connected() as (_, second_access, second),
        anyio.create_task_group() as tasks,
    ):
        # Soon and side by side: after a minute the kernel would make new random state by itself.
        for access, link, numbers in ((first_access, first, seen[0]), (second_access, second, seen[1])):
            assert access.restored or not (await case.driver.capabilities()).ram_clones, "booted, not cloned"
            tasks.start_soon(_collect_random, access, link, numbers)
    assert not seen[0] & seen[1], f"{len(seen[0] & seen[1])} of {len(seen[0])} in common"


async def _collect_random(access, link, numbers):
    numbers |= set((await python(link, _NUMBERS)).split())
    assert len(numbers) >= 1000, f"{len(numbers)} numbers"
    for _ in range(3):
        chosen = await anyio.to_thread.run_sync(chosen_at_random, access.address, access.port)
        assert not numbers & set(chosen), "twice in one guest"
        numbers |= set(chosen)


_TELL_THE_TIME = "import sys, time; [print(time.time(), flush=True) for _ in sys.stdin]"


@needs_isolation
async def clocks_are_right_after_the_start(case):
    async with (
        case.connected() as (instance_id, _, link),
        session(case, instance_id, link, LaunchMode.EXEC, ["python3", "-c", _TELL_THE_TIME]) as process,
    ):
        # The first answer takes as long as Python's start, in which an error would be lost.
        for _ in range(10):
            before = time.time()
            await process.write(b"\n")
            seen = float(await process.read_stdout(100))
            assert before - 0.1 < seen < time.time() + 0.1


@needs_isolation
async def the_user_is_root_by_sudo_and_owns_files_given_to_root_not(case):
    async with case.connected() as (instance_id, _, link):
        await case.driver.put_files(instance_id, [GuestFile("/etc/contract", b"root's", owner="root")])
        done = await by_sshd(link, "sudo -n cat /etc/contract && sudo -n id -u && stat -c %U /etc/contract")
        assert done.stdout.decode() == "root's0\nroot\n", done
