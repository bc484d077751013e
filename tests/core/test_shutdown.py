"""The end of the supervisor: everyone is told, everything is deleted, then it may stop."""

from claude_vm.supervisor.core.effects import Cancel, Delete, ReportLeak, Run, StopServing, WakeAt
from claude_vm.supervisor.core.retries import LEAK_AFTER

MESSAGE = "the supervisor was stopped"


def test_an_empty_supervisor_stops_at_once_and_says_so_once(rig):
    assert rig.shut_down() == [StopServing()]
    assert rig.shut_down() == []
    assert rig.tick(after=1) == []


def test_sessions_end_with_125_and_instances_are_deleted_before_the_supervisor_stops(make_rig, key_of, ended):
    rig = make_rig(max_instances=3, size=1)
    rig.run(9)
    rig.make_warm(8)
    rig.request(2)  # takes the warm one
    rig.demand(7)
    assert rig.request(3, key_of("b")) == [Cancel(instance_id="i7")]
    assert rig.shut_down() == [
        Cancel(instance_id="i9"),
        Cancel(instance_id="i8"),
        ended(3, 125, "daemon-stopped", MESSAGE),
    ]
    for n in (9, 8, 7):
        assert rig.cancelled(n) == [Delete(instance_id=f"i{n}")]
    assert rig.deleted(9) == [ended(9, 125, "daemon-stopped", MESSAGE)]
    assert rig.deleted(8) == [ended(2, 125, "daemon-stopped", MESSAGE)]
    assert rig.deleted(7) == [StopServing()]
    assert rig.is_empty


def test_a_warm_instance_is_deleted_at_shutdown(make_rig):
    rig = make_rig(size=1)
    rig.make_warm()
    assert rig.shut_down() == [Delete(instance_id="i1")]
    assert rig.deleted() == [StopServing()]


def test_a_session_that_ends_already_keeps_its_status_at_shutdown(rig, ended):
    rig.run()
    rig.run_done(status=7)
    assert rig.shut_down() == []
    assert rig.deleted() == [ended(status=7), StopServing()]


def test_a_command_that_had_ended_when_the_supervisor_was_stopped_has_its_own_status(rig, ended):
    rig.run()
    rig.shut_down()
    rig.run_done(status=8)
    assert rig.deleted() == [ended(status=8), StopServing()]


def test_a_session_that_comes_too_late_is_refused_with_125(rig, ended):
    rig.run()
    rig.shut_down()
    refused = ended(2, 125, "shutting-down", "the supervisor is shutting down")
    assert rig.request(2) == [refused]
    assert rig.stop(2) == []
    rig.cancelled()
    rig.deleted()
    assert rig.request(3) == [ended(3, 125, "shutting-down", refused.message)]


def test_nothing_is_made_ahead_during_shutdown(make_rig, key_of):
    rig = make_rig(size=1)
    rig.run(1)
    rig.fill(key=key_of("b"))
    assert rig.asked == [(key_of("b"), False)]
    rig.shut_down()
    assert rig.warm(2, key_of("b")) == []
    rig.fill()
    rig.change("2")
    rig.obey(size=3)
    rig.tick(after=10)
    assert rig.asked == []


def test_a_warm_instance_that_is_found_during_shutdown_is_deleted(make_rig):
    rig = make_rig(size=1)
    rig.run(1)
    rig.shut_down()
    assert rig.warm_found(2) == [Delete(instance_id="i2")]


def test_a_session_that_is_found_during_shutdown_is_stopped(rig, ended):
    rig.run(1)
    rig.shut_down()
    assert rig.session_found(2) == [Run(instance_id="i2", session_id="s2"), Cancel(instance_id="i2")]
    rig.cancelled(2)
    assert rig.deleted(2) == [ended(2, 125, "daemon-stopped", MESSAGE)]


def test_shutting_down_leaves_no_alarm_but_those_of_deletions(make_rig):
    rig = make_rig(size=1, paused=1, prestart_drivers=frozenset({"sim"}))
    rig.run(2)
    rig.make_warm(1)
    rig.shut_down()
    assert rig.core._agenda.wake() is None
    assert len(rig.core._agenda) == 0


def test_what_waits_for_another_try_is_tried_at_once_at_shutdown_and_holds_it_up(rig):
    rig.found()
    rig.failed()
    assert rig.shut_down() == [Delete(instance_id="i1")]
    assert rig.failed() == []  # an alarm is under way already, and an earlier one
    assert rig.tick(after=1) == [WakeAt(deadline=102.0)]
    assert rig.tick(after=1) == [Delete(instance_id="i1")]
    assert rig.deleted() == [StopServing()]


def test_what_can_not_be_deleted_holds_the_shutdown_up_only_until_people_are_told(rig):
    rig.found()
    rig.shut_down()
    for _ in range(LEAK_AFTER - 1):
        assert StopServing() not in rig.failed()
        rig.tick(after=60)
    *_, last = told = rig.failed()
    assert isinstance(told[0], ReportLeak)
    assert last == StopServing()
    rig.tick(after=60)
    assert rig.deleted() == []


def test_a_leak_is_tried_once_more_at_shutdown(rig):
    rig.found()
    for _ in range(LEAK_AFTER - 1):
        rig.failed()
        rig.tick(after=60)
    rig.failed()
    assert rig.shut_down() == [Delete(instance_id="i1")]
    assert rig.failed()[-1] == StopServing()


def test_an_instance_found_during_shutdown_is_deleted_too(rig):
    rig.run(1)
    rig.shut_down()
    assert rig.found(2) == [Delete(instance_id="i2")]
    rig.cancelled(1)
    rig.deleted(1)
    assert rig.deleted(2) == [StopServing()]
