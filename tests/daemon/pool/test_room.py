"""What is taken of what the pool may take, and how a session got its VM."""

import msgspec
import pytest

from claude_vm.supervisor.core.instance import UNKNOWN_KEY, InstanceState
from claude_vm.supervisor.core.keys import MountKey, PoolKey
from claude_vm.supervisor.core.policy import PoolPolicy
from claude_vm.supervisor.core.views import InstanceView, MemoryView, PoolView
from claude_vm.supervisor.daemon.pool.room import is_unclaimed, pool_of, room
from claude_vm.supervisor.daemon.sessions.start_notes import how_it_came

KEY = PoolKey("sim", "t", "g1", cpus=2, memory_mib=1024, disk_gib=20, mounts=(MountKey("/p", "/p", True),))
FREE = MemoryView(0, None)
POLICY = PoolPolicy(size=1, max_instances=3, memory_budget_mib=4096)


def view(key=KEY, **more):
    nothing = {
        **dict.fromkeys(("wanted", "warm", "making", "paused", "claimed", "failures"), 0),
        "last_used_at": None,
        "last_error": "",
        "next_try_at": None,
    }
    return PoolView(key=key, **(nothing | more))


def instance(state, *, session="", key=KEY):
    return InstanceView(
        instance_id="i", state=state, since=0, key=key, session_id=session, failed_deletions=0, made_at=0
    )


def other(**changes):
    return msgspec.structs.replace(KEY, **changes)


def test_a_leak_that_people_were_told_of_takes_no_place():
    found = [instance(state) for state in (InstanceState.RUNNING, InstanceState.STUCK, InstanceState.LEAKED)]
    assert room(POLICY, FREE, found).instances == 2


@pytest.mark.parametrize(
    ("state", "moving"),
    [
        (state, state not in {InstanceState.WARM, InstanceState.RUNNING, InstanceState.LEAKED, "paused"})
        for state in InstanceState
    ],
)
def test_what_leads_on_by_itself_is_told_from_what_rests(state, moving):
    assert room(POLICY, FREE, [instance(state)]).moving == moving


def test_the_ceiling_and_the_budget_are_filled_to_the_last_place_and_not_beyond():
    resting = [instance(InstanceState.WARM)]
    taken = room(POLICY, MemoryView(1024, None), resting)
    assert taken.hindrance(3072) == ""
    assert "memory_budget" in taken.hindrance(3073)
    assert "max_instances" in room(POLICY, FREE, resting * 3).hindrance(1)
    assert room(POLICY, FREE, resting * 2).hindrance(1) == ""
    unbounded = msgspec.structs.replace(POLICY, memory_budget_mib=None)
    assert room(unbounded, MemoryView(1024, None), resting).hindrance(1 << 20) == ""


def test_a_ready_vm_must_leave_the_host_twice_its_reserve():
    policy = msgspec.structs.replace(POLICY, memory_reserve_mib=500)
    taken = room(policy, MemoryView(0, 1400), [])
    assert taken.hindrance(400) == ""
    assert "1400 MiB of memory available" in taken.hindrance(401)


@pytest.mark.parametrize(
    ("state", "session", "key", "unclaimed"),
    [
        (InstanceState.WARM, "", KEY, True),
        (InstanceState.CLONING, "", KEY, True),
        (InstanceState.CLONING, "s", KEY, False),
        (InstanceState.DELETING, "", KEY, False),
        (InstanceState.ABANDONED, "", KEY, False),
        (InstanceState.LEAKED, "", KEY, False),
        (InstanceState.DELETING, "", UNKNOWN_KEY, False),
    ],
)
def test_only_what_is_ready_or_becomes_so_without_a_session_is_the_pools(state, session, key, unclaimed):
    assert is_unclaimed(instance(state, session=session, key=key)) == unclaimed


def test_a_key_is_found_whole_or_not_at_all():
    assert pool_of(KEY, [view(other(mounts=())), view(warm=1)]).warm == 1
    assert pool_of(KEY, [view(other(generation="g2"))]) is None


@pytest.mark.parametrize(
    ("source", "before", "says"),
    [
        ("warm", [], "took a ready VM"),
        ("paused", [], "took a VM that was started ahead"),
        ("making", [view(making=1)], "took a VM that was being made ready"),
        ("resumed", [], "goes on in the VM that it had"),
        ("made", [], "no ready VM: cloning"),
        ("made", [view(warm=0)], "no ready VM: cloning"),
        ("made", [view(warm=1)], "no ready VM: cloning"),  # somebody else took it
        ("made", [view(other(mounts=()), warm=1)], "no ready VM with these mounts: cloning"),
        ("made", [view(other(mounts=()), warm=0)], "no ready VM: cloning"),
        ("made", [view(other(cpus=1), warm=1)], "no ready VM of this size: cloning"),
        ("made", [view(other(generation="g0"), warm=1)], "no ready VM: cloning"),
        ("made", [view(other(template="u", mounts=()), warm=1)], "no ready VM: cloning"),
        ("made", [view(other(driver="qemu", mounts=()), warm=1)], "no ready VM: cloning"),
    ],
)
def test_a_session_is_told_how_it_got_its_vm(source, before, says):
    assert how_it_came(source, KEY, before) == says
