"""Who gets which instance, in which order, and how many there are at most."""

import pytest

from claude_vm.supervisor.core import effects, events
from claude_vm.supervisor.core.effects import Cancel, Clone, Connect, Delete, Run, Start
from claude_vm.supervisor.core.events import EffectFailed
from claude_vm.supervisor.core.instance import UNKNOWN_KEY


def test_a_session_without_a_warm_instance_goes_through_clone_start_connect_and_run(rig, key_of):
    assert rig.request() == [Clone(instance_id="i1", key=key_of())]
    assert rig.cloned() == [Start(instance_id="i1")]
    assert rig.started() == [Connect(instance_id="i1")]
    assert rig.connected() == [Run(instance_id="i1", session_id="s1")]
    assert rig.run_started() == []
    assert rig.session_state() == "running"


def test_the_client_is_told_each_phase_once_and_in_order(rig, key_of):
    phases = rig.send_for_phases(events.SessionRequested, session_id="s1", instance_id="i1", key=key_of())
    for kind, fields in (
        (events.CloneDone, {}),
        (events.StartDone, {"restored": False}),
        (events.ConnectDone, {}),
        (events.RunStarted, {"session_id": "s1"}),
        (events.RunDone, {"session_id": "s1", "status": 0}),
        (events.DeleteDone, {}),
    ):
        phases += rig.send_for_phases(kind, instance_id="i1", **fields)
    assert phases == [("s1", phase) for phase in ("clone", "start", "connect", "run", "delete")]


def test_a_warm_instance_with_the_same_key_runs_the_session_at_once(make_rig):
    rig = make_rig(size=1)
    assert rig.make_warm(1) == []
    assert rig.core.instances()[0].made_at == 100.0
    fields = {"session_id": "s2", "instance_id": "i2", "key": rig.core.instances()[0].key}
    assert rig.send(events.SessionRequested, **fields) == [Run(instance_id="i1", session_id="s2")]
    assert [view.instance_id for view in rig.core.instances()] == ["i1"]
    assert rig.core.sessions()[0].instance_id == "i1"


def test_a_warm_instance_with_another_key_is_not_taken(make_rig, key_of):
    rig = make_rig(size=1)
    rig.make_warm(1, key_of("a"))
    assert rig.request(2, key_of("b")) == [Clone(instance_id="i2", key=key_of("b"))]


def test_the_oldest_warm_instance_is_taken_first_and_each_one_once(make_rig):
    rig = make_rig(size=2)
    rig.make_warm(1)
    rig.make_warm(2)
    assert rig.request(3) == [Run(instance_id="i1", session_id="s3")]
    assert rig.request(4) == [Run(instance_id="i2", session_id="s4")]
    assert isinstance(rig.request(5)[0], Clone)


def test_a_warm_instance_whose_vm_died_is_deleted_and_never_taken(make_rig, key_of):
    rig = make_rig(size=1)
    rig.make_warm(1)
    assert rig.died(1) == [Delete(instance_id="i1")]
    assert rig.request(2) == [Clone(instance_id="i2", key=key_of())]


def test_sessions_above_the_ceiling_wait_and_are_served_in_the_order_of_their_requests(make_rig, key_of):
    rig = make_rig(max_instances=1)
    rig.run(1)
    assert rig.request(2) == []
    assert rig.request(3) == []
    assert [rig.session_state(n) for n in (1, 2, 3)] == ["running", "queued", "queued"]
    rig.run_done(1)
    assert rig.deleted(1)[1:] == [Clone(instance_id="i2", key=key_of())]
    assert [rig.session_state(n) for n in (2, 3)] == ["preparing", "queued"]


def test_a_waiting_session_is_told_that_it_waits(make_rig, key_of):
    rig = make_rig(max_instances=1)
    rig.request(1)
    fields = {"session_id": "s2", "instance_id": "i2", "key": key_of()}
    assert rig.send_for_phases(events.SessionRequested, **fields) == [("s2", "queued")]


def test_an_instance_that_is_being_deleted_still_counts_against_the_ceiling(make_rig):
    rig = make_rig(max_instances=1)
    rig.run(1)
    rig.run_done(1)
    assert rig.request(2) == []
    assert rig.session_state(2) == "queued"


def test_an_instance_that_a_dead_supervisor_left_counts_until_it_is_deleted(make_rig, key_of):
    rig = make_rig(max_instances=1)
    assert rig.found(9) == [Delete(instance_id="i9")]
    assert rig.request(1) == []
    assert rig.deleted(9) == [Clone(instance_id="i1", key=key_of())]


def test_a_waiting_session_that_stops_lets_the_next_one_through(make_rig, key_of, ended):
    rig = make_rig(max_instances=2, size=1)
    rig.make_warm(1, key_of("a"))
    rig.run(2)
    rig.run_done(2)
    assert rig.request(3, key_of("b")) == []
    assert rig.request(4, key_of("a")) == []
    assert rig.stop(3, status=130, reason="interrupted") == [
        ended(3, 130, "stopped", "interrupted"),
        Run(instance_id="i1", session_id="s4"),
    ]


def test_a_warm_instance_of_another_key_gives_way_to_a_waiting_session(make_rig, key_of):
    rig = make_rig(max_instances=2, size=2)
    rig.make_warm(1, key_of("a"))
    rig.make_warm(2, key_of("a"))
    rig.now += 1
    assert rig.request(3, key_of("b")) == [Delete(instance_id="i1")]
    assert rig.request(4, key_of("b")) == [Delete(instance_id="i2")]  # nobody waits for another's deletion
    assert rig.request(5, key_of("b")) == []
    assert rig.deleted(1) == [Clone(instance_id="i3", key=key_of("b"))]
    assert rig.deleted(2) == [Clone(instance_id="i4", key=key_of("b"))]


def test_one_that_another_session_waits_for_gives_way_to_the_head_of_the_queue_only(make_rig, key_of):
    rig = make_rig(max_instances=2, size=1)
    rig.make_warm(1, key_of("a"))
    rig.run(2)
    rig.run_done(2)
    rig.request(3, key_of("b"))  # has the place that comes free
    assert rig.request(4, key_of("a")) == []
    rig.deleted(2)
    assert rig.session_state(4) == "preparing"
    assert rig.core.sessions()[-1].source == "warm"


def test_a_deletion_that_has_to_be_tried_again_holds_no_session_up(make_rig, key_of):
    rig = make_rig(max_instances=2, size=1)
    rig.make_warm(1, key_of("a"))
    rig.run(2)
    rig.run_done(2)
    rig.failed(2)
    assert rig.request(3, key_of("b")) == [Delete(instance_id="i1")]


def test_an_unclaimed_instance_of_another_key_gives_way_while_it_is_made_if_nothing_is_ready(
    make_rig, key_of
):
    rig = make_rig(size=1, max_instances=2)
    rig.demand(1, key_of("a"))
    rig.make_warm(2, key_of("b"))
    assert rig.request(3, key_of("c")) == [Delete(instance_id="i2")]
    assert rig.request(4, key_of("c")) == [Cancel(instance_id="i1")]


def test_the_listings_show_what_there_is(make_rig, key_of):
    rig = make_rig(max_instances=2)
    rig.found(9)
    rig.now = 101.0
    rig.request(1)
    rig.request(2)
    rig.now = 103.0
    rig.cloned(1)
    found, made = rig.core.instances()
    assert (found.instance_id, found.key, found.session_id, found.since) == ("i9", UNKNOWN_KEY, "", 100.0)
    assert (made.state, made.key, made.session_id, made.since) == ("starting", key_of(), "s1", 103.0)
    one, two = rig.core.sessions()
    assert (one.session_id, one.state, one.instance_id, one.status) == ("s1", "preparing", "i1", None)
    assert (one.source, two.source) == ("made", "")
    assert (found.made_at, made.made_at) == (None, 101.0)
    assert (two.state, two.instance_id, two.requested_at, two.since) == ("queued", "", 101.0, 101.0)
    rig.stop(1, status=130)
    assert rig.core.sessions()[0].status == 130
    assert rig.core.instances()[1].failed_deletions == 0
    assert not rig.is_empty


def test_something_that_is_no_event_of_the_core_is_a_type_error(rig):
    before = rig.snapshot()
    for nonsense in (
        events.Event(at=1.0),
        events.InstanceEvent(at=1.0, instance_id="i1"),
        effects.StopServing(),
    ):
        with pytest.raises(TypeError, match="no event of the core"):
            rig.core.handle(nonsense)
    assert rig.snapshot() == before


def test_a_stopped_session_gives_up_its_instance_and_another_may_follow(make_rig):
    rig = make_rig(max_instances=1)
    rig.run(1)
    rig.request(2)
    assert rig.stop(1) == [Cancel(instance_id="i1")]
    assert rig.cancelled(1) == [Delete(instance_id="i1")]
    assert rig.session_state(2) == "queued"
    rig.deleted(1)
    assert rig.session_state(2) == "preparing"


def test_an_instance_is_of_its_session_until_that_has_its_status(rig):
    assert rig.core.session_of("i1") == ""
    rig.request()
    assert rig.core.session_of("i1") == "s1"
    rig.cloned()
    rig.started()
    rig.connected()
    rig.run_started()
    assert rig.core.session_of("i1") == "s1"
    rig.send(events.RunDone, instance_id="i1", session_id="s1", status=0)
    rig.send(events.DeleteDone, instance_id="i1")
    assert rig.core.session_of("i1") == ""


def lose_guest(rig, n=1):
    return rig.failed(n, code="guest-failed", message="no answer")


def test_a_session_whose_warm_guest_is_lost_before_its_command_runs_gets_another_one(make_rig, key_of, ended):
    rig = make_rig(size=1)
    rig.make_warm(1)
    rig.request(2)
    assert set(map(type, lose_guest(rig))) == {Delete, Clone}
    assert [view.source for view in rig.core.sessions()] == ["made"]
    assert rig.deleted(1) == []
    rig.connect(2)
    rig.run_started(2)
    rig.run_done(2)
    assert rig.deleted(2) == [ended(2)]


def test_a_session_that_lost_its_guest_comes_before_those_that_wait(make_rig, key_of):
    rig = make_rig(size=1, max_instances=1)
    rig.make_warm(1)
    rig.request(2)
    rig.request(3)
    assert lose_guest(rig) == [Delete(instance_id="i1")]
    assert [rig.session_state(n) for n in (2, 3)] == ["queued", "queued"]
    assert rig.deleted(1) == [Clone(instance_id="i2", key=key_of())]
    assert rig.session_state(3) == "queued"


def test_the_client_of_a_session_that_lost_its_guest_is_told_that_it_waits(make_rig):
    rig = make_rig(size=1)
    rig.make_warm(1)
    rig.request(2)
    failed = {"instance_id": "i1", "code": "guest-failed", "message": "no answer"}
    assert rig.send_for_phases(EffectFailed, **failed) == [("s2", "queued"), ("s2", "clone")]


def test_a_session_that_lost_its_guest_can_be_stopped_while_it_waits(make_rig, ended):
    rig = make_rig(size=1, max_instances=1)
    rig.make_warm(1)
    rig.request(2)
    lose_guest(rig)
    assert rig.stop(2) == [ended(2, 130, "stopped", "interrupted")]
    assert rig.deleted(1) == []
    assert rig.core.sessions() == []


def test_a_second_lost_guest_ends_the_session(make_rig, ended):
    rig = make_rig(size=2)
    rig.make_warm(1)
    rig.warm(2)
    rig.connect(2)
    rig.request(3)
    assert lose_guest(rig, 1) == [Delete(instance_id="i1"), Run(instance_id="i2", session_id="s3")]
    assert lose_guest(rig, 2) == [Delete(instance_id="i2")]
    assert rig.deleted(2) == [ended(3, 125, "guest-failed", "no answer")]


@pytest.mark.parametrize("why", ["made for it", "the command runs", "our own failure"])
def test_a_failure_that_another_guest_would_not_help_or_that_came_too_late_ends_the_session(make_rig, why):
    rig = make_rig(size=1)
    if why != "made for it":
        rig.make_warm(1)
    rig.request(2 if why != "made for it" else 1)
    if why == "made for it":
        rig.connect(1)
    if why == "the command runs":
        rig.run_started(1, session=2)
    assert rig.failed(1, code="journal-failed" if why == "our own failure" else "guest-failed") == [
        Delete(instance_id="i1")
    ]
    assert [view.state for view in rig.core.sessions()] == ["ending"]
