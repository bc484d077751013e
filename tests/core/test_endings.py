"""How sessions end: with which status, when their clients learn it, and what becomes of the instance."""

import pytest

from claude_vm.supervisor.core.effects import Cancel, Delete, WakeAt

WAYS = {1: ["cloned"], 2: ["cloned", "started"], 3: ["cloned", "started", "connected"]}


def prepare(rig, stage):
    rig.request()
    for word in WAYS.get(stage, []):
        getattr(rig, word)()


def test_the_client_gets_the_main_commands_status_when_nothing_is_left(rig, ended):
    rig.run()
    assert rig.run_done(status=37) == [Delete(instance_id="i1")]
    assert rig.session_state() == "ending"
    assert rig.deleted() == [ended(status=37)]
    assert rig.is_empty


def test_a_command_that_ends_before_it_was_told_to_have_started_has_its_status_too(rig, ended):
    rig.request()
    rig.connect()
    assert rig.run_done(status=127) == [Delete(instance_id="i1")]
    assert rig.deleted() == [ended(status=127)]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_failure_before_or_around_the_command_ends_the_session_with_125_and_its_reason(rig, ended, stage):
    prepare(rig, stage)
    assert rig.failed(code="boot-failed", message="no banner") == [Delete(instance_id="i1")]
    assert rig.deleted() == [ended(status=125, code="boot-failed", message="no banner")]


def test_a_lost_link_ends_a_running_session_with_125(rig, ended):
    rig.run()
    assert rig.failed(code="link-lost", message="reset") == [Delete(instance_id="i1")]
    assert rig.deleted() == [ended(status=125, code="link-lost", message="reset")]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("late", ["cancelled", "failed", "done"])
def test_late_answer_after_abandon_leads_to_delete_and_then_to_the_end(rig, ended, stage, late):
    prepare(rig, stage)
    assert rig.stop(status=130, reason="interrupted") == [Cancel(instance_id="i1")]
    assert rig.instance_state() == "abandoned"
    if late == "done":
        late = ("cloned", "started", "connected", "run_done")[stage]
    assert getattr(rig, late)() == [Delete(instance_id="i1")]
    expected = ended(status=0) if late == "run_done" else ended(1, 130, "stopped", "interrupted")
    assert rig.deleted() == [expected]


def test_a_command_that_had_ended_before_the_stop_reached_it_has_its_own_status(rig, ended):
    rig.run()
    rig.stop(status=130)
    assert rig.run_done(status=3) == [Delete(instance_id="i1")]
    assert rig.deleted() == [ended(status=3)]


def test_a_stop_after_the_commands_end_does_not_change_its_status(rig, ended):
    rig.run()
    rig.run_done(status=3)
    assert rig.stop(status=130) == []
    assert rig.deleted() == [ended(status=3)]


def test_the_first_of_two_stops_counts(rig, ended):
    rig.run()
    rig.stop(status=130, reason="first")
    rig.stop(status=143, reason="second")
    rig.cancelled()
    assert rig.deleted() == [ended(1, 130, "stopped", "first")]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_vm_that_dies_ends_its_session_with_125_and_the_reason(rig, ended, stage):
    prepare(rig, stage)
    assert rig.died(reason="killed by signal 9") == [Cancel(instance_id="i1")]
    assert rig.cancelled() == [Delete(instance_id="i1")]
    assert rig.deleted() == [ended(1, 125, "vm-died", "killed by signal 9")]


def test_a_vm_that_dies_after_the_commands_end_changes_nothing(rig, ended):
    rig.run()
    rig.run_done(status=4)
    assert rig.died() == []
    assert rig.deleted() == [ended(status=4)]


def test_the_end_of_a_command_that_a_dying_vm_tore_away_does_not_count(rig, ended):
    rig.run()
    rig.died(reason="out of memory")
    rig.run_done(status=255)
    assert rig.deleted() == [ended(1, 125, "vm-died", "out of memory")]


def test_a_stop_while_the_vm_is_dead_keeps_the_first_reason(rig, ended):
    rig.run()
    rig.died(reason="out of memory")
    rig.stop(status=130)
    rig.cancelled()
    assert rig.deleted() == [ended(1, 125, "vm-died", "out of memory")]


def test_a_failure_of_the_cancelled_call_does_not_replace_the_reason_of_the_stop(rig, ended):
    rig.run()
    rig.stop(status=141, reason="nobody reads")
    rig.failed(code="link-lost")
    assert rig.deleted() == [ended(1, 141, "stopped", "nobody reads")]


def test_a_client_does_not_wait_for_a_deletion_that_failed_once(rig, ended):
    rig.run()
    rig.run_done(status=5)
    assert rig.failed(code="busy", message="disk in use") == [
        ended(status=5),
        WakeAt(deadline=rig.now + 1),
    ]
    assert [view.state for view in rig.core.instances()] == ["stuck"]
    assert rig.core.sessions() == []
    assert rig.tick(after=1) == [Delete(instance_id="i1")]
    assert rig.deleted() == []
    assert rig.is_empty


def test_a_session_that_waits_and_is_stopped_ends_at_once(make_rig, ended):
    rig = make_rig(max_instances=1)
    rig.request(1)
    rig.request(2)
    assert rig.stop(2, status=130, reason="gone") == [ended(2, 130, "stopped", "gone")]


def test_each_instance_runs_one_session_at_most(rig):
    rig.run(1)
    rig.run_done(1)
    rig.request(2)
    assert [view.session_id for view in rig.core.instances()] == ["s1", "s2"]
