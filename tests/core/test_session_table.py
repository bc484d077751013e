"""Each state of a session against each event about sessions: written out, not taken from the code."""

import pytest

from claude_vm.supervisor.core.errors import InvalidTransition
from claude_vm.supervisor.core.events import SessionRequested
from claude_vm.supervisor.core.session import HARMLESS, MOVES, SessionState

PATHS = {
    "absent": [],
    "queued": [("request", 9), ("request", 1)],
    "preparing": [("request", 1)],
    "running": [("run", 1)],
    "running:found": [("session_found", 1)],
    "ending": [("run", 1), ("run_done", 1)],
    "ended": [("run", 1), ("run_done", 1), ("deleted", 1)],
    "ended:lost": [("session_lost", 1)],
}
AFTER_REQUEST = {"absent": "preparing"}
AFTER_STOP = {
    "queued": "ended",
    "preparing": "ending",
    "running": "ending",
    "running:found": "ending",
    "ending": "ending",
    "ended": "ended",
    "ended:lost": "ended",
}


@pytest.fixture
def rig_in(make_rig):
    def make(state):
        rig = make_rig(max_instances=1)
        for word, n in PATHS[state]:
            getattr(rig, word)(n)
        assert rig.session_state() == state.partition(":")[0]
        return rig

    return make


def test_every_state_is_tried():
    assert {state.partition(":")[0] for state in PATHS} == set(SessionState)


@pytest.mark.parametrize("state", PATHS)
def test_a_session_can_be_requested_once(rig_in, state):
    rig = rig_in(state)
    before = rig.snapshot()
    if state in AFTER_REQUEST:
        rig.request()
        assert rig.session_state() == AFTER_REQUEST[state]
    else:
        with pytest.raises(InvalidTransition) as caught:
            rig.request()
        assert rig.snapshot() == before
        assert (caught.value.key, caught.value.state) == ("s1", state.partition(":")[0])
        assert caught.value.story == rig.core.session_story("s1")


@pytest.mark.parametrize("state", [state for state in PATHS if state != "absent"])
def test_a_session_id_that_was_ever_used_can_not_be_found_again(rig_in, state):
    rig = rig_in(state)
    before = rig.snapshot()
    with pytest.raises(InvalidTransition) as caught:
        rig.session_found(1, instance="fresh")
    assert rig.snapshot() == before
    assert caught.value.key == "s1"


@pytest.mark.parametrize("state", PATHS)
def test_a_session_can_be_stopped_in_every_state_that_it_was_ever_in(rig_in, state):
    rig = rig_in(state)
    before = rig.snapshot()
    if state in AFTER_STOP:
        rig.stop()
        assert rig.session_state() == AFTER_STOP[state]
    else:
        with pytest.raises(InvalidTransition, match="StopRequested does not fit 's1', which is absent"):
            rig.stop()
        assert rig.snapshot() == before


@pytest.mark.parametrize("state", ["ending", "ended"])
def test_stopping_a_session_that_ends_anyway_changes_nothing(rig_in, state):
    rig = rig_in(state)
    before = rig.snapshot()
    assert rig.stop() == []
    assert rig.snapshot() == before


@pytest.mark.parametrize("state", [state for state in PATHS if state not in {"absent", "ended:lost"}])
def test_a_new_session_can_not_bring_the_instance_id_of_another_one(rig_in, state, key_of):
    rig = rig_in(state)
    before = rig.snapshot()
    with pytest.raises(InvalidTransition):
        rig.send(SessionRequested, session_id="s2", instance_id="i1", key=key_of())
    assert rig.snapshot() == before


def test_the_id_that_a_waiting_session_brought_is_free_again_when_it_stops(rig_in, key_of):
    rig = rig_in("queued")
    rig.stop()
    rig.send(SessionRequested, session_id="s2", instance_id="i1", key=key_of())
    assert rig.session_state(2) == "queued"


def test_each_harmless_event_has_a_reason_and_is_in_no_table():
    for (state, event), reason in HARMLESS.items():
        assert len(reason.split()) > 3
        assert event not in MOVES[state]
