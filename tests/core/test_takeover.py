"""A session takes over what the pool has in the making."""

import pytest

from claude_vm.supervisor.core import events
from claude_vm.supervisor.core.effects import Cancel, Clone, Connect, Delete, EndSession, Run, Start

AHEAD = {"paused": 1, "prestart_drivers": frozenset({"sim"})}
TO_WARM = {
    "cloning": [],
    "starting": ["cloned"],
    "connecting": ["cloned", "started"],
}
TO_PAUSE = {"cloning": [], "prestarting": ["cloned"]}
PLACES = [("warm", state) for state in TO_WARM] + [("paused", state) for state in TO_PAUSE]
REST = {
    "cloning": ["clone", "start", "connect", "run"],
    "prestarting": ["start", "connect", "run"],
    "starting": ["start", "connect", "run"],
    "connecting": ["connect", "run"],
}
ANSWERS = {
    "clone": [(events.CloneDone, {})],
    "start": [(events.StartDone, {"restored": True})],
    "connect": [(events.ConnectDone, {})],
}
LATE = {
    "cloning": "cloned",
    "prestarting": "prestarted",
    "starting": "started",
    "connecting": "connected",
}


def in_the_making(make_rig, what, state, **policy):
    """Make a rig whose pool has i1 in the making."""
    if what == "paused":
        rig = make_rig(**AHEAD, **policy)
        rig.fill()
        rig.warm(paused=True)
        words = TO_PAUSE[state]
    else:
        rig = make_rig(size=1, **policy)
        rig.demand()
        words = TO_WARM[state]
    for word in words:
        getattr(rig, word)()
    assert rig.instance_state() == state
    assert rig.pool().making == 1
    rig.asked.clear()
    return rig


def ask(rig, key):
    """Let session s9 come; return what it is told."""
    return rig.send_for_phases(events.SessionRequested, session_id="s9", instance_id="i9", key=key)


@pytest.mark.parametrize(("what", "state"), PLACES)
def test_what_is_in_the_making_goes_on_for_the_session_and_nothing_else_is_made(make_rig, what, state):
    rig = in_the_making(make_rig, what, state)
    assert rig.request(9) == []
    assert [view.instance_id for view in rig.core.instances()] == ["i1"]
    assert rig.instance_state() == state
    assert rig.core.session_of("i1") == "s9"
    (session,) = rig.core.sessions()
    assert (session.state, session.source, session.instance_id) == ("preparing", "making", "i1")


@pytest.mark.parametrize(("what", "state"), PLACES)
def test_the_session_is_told_at_once_where_it_is_and_each_phase_once(make_rig, key_of, what, state):
    rig = in_the_making(make_rig, what, state)
    told = ask(rig, key_of())
    assert told == [("s9", REST[state][0])]
    if state == "prestarting":
        told += rig.send_for_phases(events.PrestartDone, instance_id="i1")
    for phase in REST[state][:-1]:
        for kind, fields in ANSWERS[phase]:
            told += rig.send_for_phases(kind, instance_id="i1", **fields)
    assert told == [("s9", phase) for phase in REST[state]]
    assert rig.run_started(1, session=9) == []
    assert rig.run_done(1, session=9, status=3) == [Delete(instance_id="i1")]
    assert rig.deleted(1) == [EndSession(session_id="s9", status=3)]


def test_an_instance_that_becomes_warm_for_its_new_session_runs_it_within_the_event(make_rig):
    rig = in_the_making(make_rig, "warm", "connecting")
    rig.request(9)
    assert rig.connected() == [Run(instance_id="i1", session_id="s9")]


def test_an_instance_that_should_have_been_paused_is_not_any_more(make_rig):
    rig = in_the_making(make_rig, "paused", "cloning")
    rig.request(9)
    assert rig.cloned() == [Start(instance_id="i1")]
    rig = in_the_making(make_rig, "paused", "prestarting")
    rig.request(9)
    assert rig.prestarted() == [Start(instance_id="i1")]


def test_the_story_of_an_instance_says_who_took_it_over(make_rig):
    rig = in_the_making(make_rig, "warm", "starting")
    rig.now += 7
    rig.request(9)
    step = rig.core.instance_story("i1").steps[-1]
    assert (step.at, step.before, step.cause, step.after, step.note) == (
        rig.now, "starting", "claim", "starting", "s9"
    )  # fmt: skip
    assert rig.core.instances()[0].since == 100.0


# Who gets what.


def test_the_second_of_two_sessions_makes_its_own(make_rig, key_of):
    rig = in_the_making(make_rig, "warm", "cloning")
    assert rig.request(8) == []
    assert rig.request(9) == [Clone(instance_id="i9", key=key_of())]
    assert [view.source for view in rig.core.sessions()] == ["making", "made"]
    assert [view.session_id for view in rig.core.instances()] == ["s8", "s9"]


def test_what_is_warm_is_taken_before_what_is_paused_and_that_before_what_is_in_the_making(make_rig):
    rig = make_rig(size=1, **AHEAD)
    rig.make_warm(1)
    rig.make_paused(2)
    rig.obey(size=2, **AHEAD)
    rig.warm(3)
    assert rig.request(7) == [Run(instance_id="i1", session_id="s7")]
    assert rig.request(8) == [Start(instance_id="i2")]
    assert rig.request(9) == []
    assert [view.source for view in rig.core.sessions()] == ["warm", "paused", "making"]
    assert rig.core.session_of("i3") == "s9"


def test_of_several_in_the_making_the_oldest_is_taken_and_the_one_to_be_paused_last(make_rig, key_of):
    rig = in_the_making(make_rig, "paused", "cloning")
    rig.obey(size=2, **AHEAD)
    rig.warm_found(2)
    rig.warm_found(3)
    for n, taken in ((7, 2), (8, 3), (9, 1)):
        assert rig.request(n) == []
        assert rig.core.session_of(f"i{taken}") == f"s{n}"
    assert rig.request(10) == [Clone(instance_id="i10", key=key_of())]


def test_what_is_in_the_making_for_a_session_is_not_taken_from_it(make_rig, key_of):
    rig = make_rig(size=1)
    rig.request(1)
    assert rig.request(2) == [Clone(instance_id="i2", key=key_of())]


def test_what_is_in_the_making_with_another_key_is_left_to_the_pool(make_rig, key_of):
    rig = in_the_making(make_rig, "warm", "starting")
    assert rig.request(9, key_of("b")) == [Clone(instance_id="i9", key=key_of("b"))]
    assert rig.core.session_of("i1") == ""


def test_what_was_asked_for_but_not_answered_is_not_taken_over(make_rig, key_of):
    rig = make_rig(size=1)
    rig.fill()
    assert rig.asked == [(key_of(), False)]
    assert rig.request(9) == [Clone(instance_id="i9", key=key_of())]
    assert rig.warm(1) == [Clone(instance_id="i1", key=key_of())]
    assert rig.core.session_of("i1") == ""


@pytest.mark.parametrize(("what", "state"), PLACES)
def test_at_the_ceiling_nothing_of_another_key_has_to_give_way(make_rig, key_of, what, state):
    rig = in_the_making(make_rig, what, state, max_instances=2)
    rig.fill(1, key_of("b"))
    rig.warm(2, key_of("b"))
    rig.connect(2)
    rig.now += 1
    assert rig.request(9) == []
    assert rig.session_state(9) == "preparing"
    assert rig.instance_state(2) == "warm"


def test_a_session_that_waited_behind_another_takes_over_what_was_in_the_making_meanwhile(make_rig, key_of):
    rig = in_the_making(make_rig, "warm", "starting", max_instances=2)
    rig.found(7)  # its place comes free for the first
    assert rig.request(8, key_of("b")) == []
    assert rig.request(9) == []
    assert (rig.session_state(8), rig.session_state(9)) == ("queued", "queued")
    phases = rig.send_for_phases(events.StopRequested, session_id="s8", reason="interrupted", status=130)
    assert phases == [("s9", "start")]
    assert rig.core.sessions()[0].source == "making"


def test_a_found_instance_that_is_being_connected_to_is_taken_over(make_rig):
    rig = make_rig(size=1)
    assert rig.warm_found(1) == [Connect(instance_id="i1")]
    assert rig.request(9) == []
    assert rig.connected(1) == [Run(instance_id="i1", session_id="s9")]
    assert rig.core.sessions()[0].source == "making"


# It is not the pool's any more.


def test_what_was_taken_over_is_counted_as_the_sessions_and_the_next_one_is_made_after_the_delay(
    make_rig, key_of
):
    rig = in_the_making(make_rig, "warm", "starting", refill_delay_s=2.0)
    rig.now += 10
    rig.request(9)
    view = rig.pool()
    assert (view.making, view.claimed, view.next_try_at) == (0, 1, rig.now + 2.0)
    rig.tick(after=1.9)
    assert rig.asked == []
    rig.tick(after=0.1)
    assert rig.asked == [(key_of(), False)]
    assert rig.warm(2) == [Clone(instance_id="i2", key=key_of())]


def test_what_was_taken_over_leaves_its_memory_to_the_pool(make_rig, key_of):
    rig = in_the_making(make_rig, "warm", "cloning", memory_budget_mib=512)
    rig.request(9)
    rig.tick(after=1)
    assert rig.asked == [(key_of(), False)]


def test_what_was_taken_over_leaves_its_turn_to_be_made_to_others(make_rig, key_of):
    rig = make_rig(size=1)
    for n, name in enumerate("ab", 1):
        rig.demand(n, key_of(name))
    rig.fill(key=key_of("c"))
    rig.asked.clear()
    rig.request(9, key_of("a"))
    assert rig.asked == [(key_of("c"), False)]


def test_what_was_taken_over_stays_when_the_pool_gives_up_what_it_has(make_rig):
    rig = in_the_making(make_rig, "warm", "starting", max_age_s=60.0)
    rig.request(9)
    assert rig.drain() == []
    assert rig.change("2") == []
    assert rig.obey(max_age_s=1.0) == []
    assert rig.tick(after=100) == []
    assert rig.instance_state() == "starting"


# How it ends.


@pytest.mark.parametrize(("what", "state"), PLACES)
def test_a_session_that_stops_gives_up_what_it_took_over_and_the_late_answer_leads_to_its_deletion(
    make_rig, ended, what, state
):
    rig = in_the_making(make_rig, what, state)
    rig.request(9)
    assert rig.stop(9) == [Cancel(instance_id="i1")]
    assert rig.instance_state() == "abandoned"
    assert getattr(rig, LATE[state])() == [Delete(instance_id="i1")]
    assert rig.deleted() == [ended(9, 130, "stopped", "interrupted")]
    assert rig.core.sessions() == []


@pytest.mark.parametrize(("what", "state"), PLACES)
def test_a_failure_is_the_sessions_and_not_the_pools(make_rig, ended, what, state):
    rig = in_the_making(make_rig, what, state)
    rig.request(9)
    assert rig.failed(code="disk-full", message="no space left") == [Delete(instance_id="i1")]
    assert rig.deleted() == [ended(9, 125, "disk-full", "no space left")]
    view = rig.pool()
    assert (view.failures, view.last_error, view.next_try_at) == (0, "", 100.5)


@pytest.mark.parametrize(("what", "state"), PLACES)
def test_the_death_of_its_vm_is_the_sessions_and_not_the_pools(make_rig, ended, what, state):
    rig = in_the_making(make_rig, what, state)
    rig.request(9)
    assert rig.died() == [Cancel(instance_id="i1")]
    assert rig.cancelled() == [Delete(instance_id="i1")]
    assert rig.deleted() == [ended(9, 125, "vm-died", "killed by signal 9")]
    assert rig.pool().failures == 0


def test_a_take_over_does_not_end_a_row_of_failures(make_rig):
    rig = make_rig(size=1)
    rig.demand(1)
    rig.failed(1)
    rig.tick(after=1)
    rig.warm(2)
    rig.request(9)
    assert rig.core.session_of("i2") == "s9"
    assert (rig.pool().failures, rig.pool().last_error) == (1, "boom: it broke")


def test_a_shutdown_ends_the_session_of_what_was_taken_over(make_rig, ended):
    rig = in_the_making(make_rig, "warm", "starting")
    rig.request(9)
    assert rig.shut_down() == [Cancel(instance_id="i1")]
    assert rig.cancelled() == [Delete(instance_id="i1")]
    assert rig.deleted()[0] == ended(9, 125, "daemon-stopped", "the supervisor was stopped")
    assert rig.is_empty


def test_a_sessions_source_can_be_asked_for_as_long_as_it_lives(make_rig, key_of):
    rig = in_the_making(make_rig, "warm", "connecting", max_instances=1)
    assert rig.core.source_of("s9") == ""
    rig.request(9)
    rig.request(8, key_of("b"))
    assert (rig.core.source_of("s9"), rig.core.source_of("s8")) == ("making", "")
    rig.failed()
    rig.deleted()
    assert (rig.core.source_of("s9"), rig.core.source_of("s8")) == ("", "made")
