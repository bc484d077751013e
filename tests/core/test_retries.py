"""What can't be deleted is tried again, ever more slowly, told once, and never forgotten."""

import pytest

from claude_vm.supervisor.core.effects import Clone, Delete, ReportLeak, WakeAt
from claude_vm.supervisor.core.retries import LEAK_AFTER, delay_s


def leak(rig, n=1):
    rig.found(n)
    for _ in range(LEAK_AFTER - 1):
        rig.failed(n)
        rig.tick(after=60)
    return rig.failed(n, message="device busy")


def test_the_pauses_double_up_to_a_minute():
    assert [delay_s(n) for n in range(1, 10)] == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_deletion_that_fails_is_tried_again_after_each_pause_for_ever(rig):
    rig.found()
    for pause in (1, 2, 4, 8, 16, 32, 60, 60, 60):
        assert WakeAt(deadline=rig.now + pause) in rig.failed()
        assert rig.tick(after=pause) == [Delete(instance_id="i1")]
    assert rig.deleted() == []
    assert rig.is_empty


def test_people_are_told_once_after_several_tries(rig):
    told = leak(rig)
    assert told[0] == ReportLeak(instance_id="i1", message="boom: device busy")
    assert rig.instance_state() == "leaked"
    rig.tick(after=60)
    assert not [e for e in rig.failed() if isinstance(e, ReportLeak)]
    assert rig.core.instances()[0].failed_deletions == LEAK_AFTER + 1


def test_a_leak_that_was_told_does_not_lock_sessions_out(make_rig, key_of):
    rig = make_rig(max_instances=1)
    rig.found(1)
    assert rig.request(2) == []
    for _ in range(LEAK_AFTER - 1):
        rig.failed(1)
        rig.tick(after=60)
    assert Clone(instance_id="i2", key=key_of()) in rig.failed(1)


def test_a_tick_that_comes_too_early_leaves_the_alarm_that_is_under_way(rig):
    rig.found()
    rig.failed()
    assert rig.tick(after=0.5) == []
    assert rig.tick(after=0.5) == [Delete(instance_id="i1")]


def test_one_alarm_serves_several_instances_that_are_due_at_once_or_later(rig):
    rig.found(1)
    rig.found(2)
    rig.found(3)
    assert rig.failed(1) == [WakeAt(deadline=101.0)]
    assert rig.failed(2) == []
    rig.now += 0.5
    assert rig.failed(3) == []
    assert rig.tick(after=0.5) == [
        Delete(instance_id="i1"),
        Delete(instance_id="i2"),
        WakeAt(deadline=101.5),
    ]


def test_a_tick_without_anything_due_does_nothing(rig):
    assert rig.tick(after=5) == []


@pytest.mark.parametrize("gone", [True, False])
def test_an_alarm_for_an_instance_that_moved_on_meanwhile_does_nothing(rig, gone):
    rig.found()
    rig.failed()
    rig.shut_down()  # tries at once
    if gone:
        rig.deleted()
    assert rig.tick(after=1) == []
