"""Each state of an instance against each event about instances: written out, not taken from the code."""

import pytest

from claude_vm.supervisor.core import effects, events
from claude_vm.supervisor.core.errors import InvalidTransition
from claude_vm.supervisor.core.instance import (
    HARMLESS,
    IN_USE,
    MOVES,
    UNCLAIMED,
    InstanceOrder,
    InstanceState,
)

# "-" does not fit, "=" is harmless (no change, no effect), a word is the next state.
GRID = """
state              CloneDone   PrestartDone StartDone  ConnectDone RunDone  DeleteDone EffectFailed EffectCancelled RunStarted VmDied
absent             -           -            -          -           -        -          -            -               -          -
cloning            starting    -            -          -           -        -          deleting     -               -          abandoned
cloning:paused     prestarting -            -          -           -        -          deleting     -               -          abandoned
cloning:taken      starting    -            -          -           -        -          deleting     -               -          abandoned
cloning:both       starting    -            -          -           -        -          deleting     -               -          abandoned
prestarting        -           paused       -          -           -        -          deleting     -               -          abandoned
prestarting:taken  -           starting     -          -           -        -          deleting     -               -          abandoned
paused             -           -            -          -           -        -          -            -               -          deleting
starting:paused    -           -            connecting -           -        -          deleting     -               -          abandoned
starting:taken     -           -            connecting -           -        -          deleting     -               -          abandoned
starting           -           -            connecting -           -        -          deleting     -               -          abandoned
connecting         -           -            -          leased      -        -          deleting     -               -          abandoned
connecting:found   -           -            -          warm        -        -          deleting     -               -          abandoned
connecting:ahead   -           -            -          warm        -        -          deleting     -               -          abandoned
connecting:taken   -           -            -          leased      -        -          deleting     -               -          abandoned
connecting:both    -           -            -          leased      -        -          deleting     -               -          abandoned
warm               -           -            -          -           -        -          -            -               -          deleting
leased             -           -            -          -           deleting -          deleting     -               running    abandoned
running            -           -            -          -           deleting -          deleting     -               -          abandoned
running:found      -           -            -          -           deleting -          deleting     -               -          abandoned
abandoned:clone    deleting    -            -          -           -        -          deleting     deleting        -          =
abandoned:ahead    deleting    -            -          -           -        -          deleting     deleting        -          =
abandoned:prestart -           deleting     -          -           -        -          deleting     deleting        -          =
abandoned:taken    -           deleting     -          -           -        -          deleting     deleting        -          =
abandoned:start    -           -            deleting   -           -        -          deleting     deleting        -          =
abandoned:connect  -           -            -          deleting    -        -          deleting     deleting        -          =
abandoned:run      -           -            -          -           deleting -          deleting     deleting        =          =
abandoned:found    -           -            -          -           deleting -          deleting     deleting        =          =
deleting           -           -            -          -           -        deleted    stuck        -               -          =
stuck              -           -            -          -           -        -          -            -               -          =
leaked             -           -            -          -           -        -          -            -               -          =
deleted            -           -            -          -           -        -          -            -               -          =
"""  # noqa: E501 - a table
HEAD, *ROWS = [line.split() for line in GRID.strip().splitlines()]
CELLS = {(row[0], event): cell for row in ROWS for event, cell in zip(HEAD[1:], row[1:], strict=True)}
FIELDS = {
    "StartDone": {"restored": False},
    "RunDone": {"session_id": "s1", "status": 0},
    "RunStarted": {"session_id": "s1"},
    "EffectFailed": {"code": "boom", "message": "it broke"},
    "VmDied": {"reason": "killed"},
}


def fail_deletion(rig, times):
    rig.run()
    rig.run_done()
    for _ in range(times - 1):
        rig.failed()
        rig.tick(after=60)
    rig.failed()


PATHS = {
    "absent": [],
    "cloning": ["request"],
    "cloning:paused": ["demand_paused"],
    "cloning:taken": ["demand", "claim"],
    "cloning:both": ["demand_paused", "claim"],
    "prestarting": ["demand_paused", "cloned"],
    "prestarting:taken": ["demand_paused", "cloned", "claim"],
    "starting:taken": ["demand", "cloned", "claim"],
    "connecting:ahead": ["demand", "cloned", "started"],
    "connecting:taken": ["demand", "cloned", "started", "claim"],
    "connecting:both": ["warm_found", "claim"],
    "abandoned:taken": ["demand_paused", "cloned", "claim", "stop_9"],
    "paused": ["demand_paused", "cloned", "prestarted"],
    "starting": ["request", "cloned"],
    "starting:paused": ["demand_paused", "cloned", "prestarted", "claim"],
    "connecting:found": ["warm_found"],
    "running:found": ["session_found"],
    "abandoned:ahead": ["demand_paused", "drain"],
    "abandoned:prestart": ["demand_paused", "cloned", "drain"],
    "abandoned:found": ["session_found", "stop"],
    "connecting": ["request", "cloned", "started"],
    "warm": ["make_warm"],
    "leased": ["request", "connect"],
    "running": ["run"],
    "abandoned:clone": ["request", "stop"],
    "abandoned:start": ["request", "cloned", "stop"],
    "abandoned:connect": ["request", "cloned", "started", "stop"],
    "abandoned:run": ["run", "stop"],
    "deleting": ["run", "run_done"],
    "deleted": ["run", "run_done", "deleted"],
}


AHEAD = {"paused": 1, "prestart_drivers": frozenset({"sim"})}
RIGS = {place: AHEAD for place, words in PATHS.items() if "demand_paused" in words}


def follow(rig, words):
    for word in words:
        match word:
            case "demand_paused":
                rig.fill()
                rig.warm(paused=True)
            case "claim":
                rig.request(9)
            case "stop_9":
                rig.stop(9)
            case _:
                getattr(rig, word)()


@pytest.fixture
def rig_in(make_rig):
    def make(place):
        rig = make_rig(**RIGS.get(place, {"size": 1}))
        if place == "stuck":
            fail_deletion(rig, 1)
        elif place == "leaked":
            fail_deletion(rig, 5)
        else:
            follow(rig, PATHS[place])
        assert rig.instance_state() == place.partition(":")[0]
        return rig

    return make


def leaves(kind):
    below = kind.__subclasses__()
    return {leaf for child in below for leaf in leaves(child)} if below else {kind.__name__}


def test_the_grid_knows_every_event_about_instances_and_every_state():
    assert set(HEAD[1:]) == leaves(events.InstanceEvent)
    assert {row[0].partition(":")[0] for row in ROWS} == set(InstanceState)


@pytest.mark.parametrize(("place", "event"), list(CELLS))
def test_each_event_in_each_state_does_what_the_grid_says_or_raises_and_changes_nothing(rig_in, place, event):
    rig, expected = rig_in(place), CELLS[place, event]
    before = rig.snapshot()
    fields = {"instance_id": "i1", **FIELDS.get(event, {})}
    kind = getattr(events, event)
    if expected == "-":
        with pytest.raises(InvalidTransition) as caught:
            rig.send(kind, **fields)
        assert rig.snapshot() == before
        assert (caught.value.key, caught.value.state) == ("i1", place.partition(":")[0])
        assert caught.value.event == rig.log[-1]
        assert caught.value.story == rig.core.instance_story("i1")
    elif expected == "=":
        assert rig.send(kind, **fields) == []
        assert rig.snapshot() == before
    else:
        rig.send(kind, **fields)
        assert rig.instance_state() == expected
        assert rig.core.instance_story("i1").steps[-1].at == rig.now


@pytest.mark.parametrize("place", ["leased", "running", "running:found", "abandoned:run", "abandoned:found"])
@pytest.mark.parametrize("event", ["RunDone", "RunStarted"])
def test_news_of_a_run_that_name_another_session_raise_and_change_nothing(rig_in, place, event):
    rig = rig_in(place)
    before = rig.snapshot()
    fields = {"instance_id": "i1", **FIELDS[event], "session_id": "s2"}
    with pytest.raises(InvalidTransition):
        rig.send(getattr(events, event), **fields)
    assert rig.snapshot() == before


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("cloning", effects.Clone),
        ("prestarting", effects.Prestart),
        ("starting", effects.Start),
        ("starting:paused", effects.Start),
        ("connecting:found", effects.Connect),
        ("running:found", effects.Run),
        ("connecting", effects.Connect),
        ("leased", effects.Run),
    ],
)
def test_each_state_on_the_way_to_a_run_begins_with_its_effect(make_rig, place, expected):
    rig = make_rig(**RIGS.get(place, {"size": 1}))
    *path, last = {"leased": ["request", "cloned", "started", "connected"]}.get(place, PATHS[place])
    follow(rig, path)
    (effect,) = rig.request(9) if last == "claim" else getattr(rig, last)()
    assert type(effect) is expected
    assert effect.instance_id == "i1"


def test_what_has_run_anything_never_becomes_warm_again():
    reachable, todo = set(), [InstanceState.LEASED]
    while todo:
        for state in MOVES[todo.pop()].values():
            if state not in reachable:
                reachable.add(state)
                todo.append(state)
    assert reachable == {
        InstanceState.RUNNING,
        InstanceState.ABANDONED,
        InstanceState.DELETING,
        InstanceState.STUCK,
        InstanceState.LEAKED,
        InstanceState.DELETED,
    }


def test_what_was_never_claimed_is_not_in_use_by_a_session():
    for state, moves in MOVES.items():
        if state in UNCLAIMED:
            assert set(moves.values()) <= IN_USE | {InstanceState.ABANDONED, InstanceState.DELETING}


def test_every_state_leads_to_deleted_and_deleted_leads_nowhere():
    for start in InstanceState:
        reachable, todo = {start}, [start]
        while todo:
            for state in MOVES[todo.pop()].values():
                if state not in reachable:
                    reachable.add(state)
                    todo.append(state)
        assert InstanceState.DELETED in reachable
    assert not MOVES[InstanceState.DELETED]


def test_an_abandoned_instance_is_not_deleted_by_an_order_only_by_an_answer():
    assert not [cause for cause in MOVES[InstanceState.ABANDONED] if isinstance(cause, InstanceOrder)]


def test_each_harmless_event_has_a_reason_and_is_in_no_table():
    for (state, event), reason in HARMLESS.items():
        assert len(reason.split()) > 3
        assert event not in MOVES[state]


@pytest.mark.parametrize("place", [row[0] for row in ROWS if row[0] != "absent"])
@pytest.mark.parametrize("word", ["found", "warm", "warm_found", "session_found"])
def test_an_instance_id_that_was_ever_used_can_not_be_introduced_again(rig_in, place, word):
    rig = rig_in(place)
    before = rig.snapshot()
    with pytest.raises(InvalidTransition):
        getattr(rig, word)()
    assert rig.snapshot() == before
