"""What an event costs does not depend on how many instances and sessions there are; nor does memory grow.

Counted, not timed: the lines and the calls, those into C included, that an event takes. A scan hidden in one
call into C would not be seen by that, so no list, deque or tuple of the core may be as long as the crowd.
"""

import gc
import sys
from collections import deque

import msgspec
import pytest

from claude_vm.supervisor.core import events
from claude_vm.supervisor.core.machine import Core
from claude_vm.supervisor.core.registry import RETIRED_IDS, Registry

LIFE = ["request", "cloned", "started", "connected", "run_started", "run_done", "deleted"]
OTHER_LIVES = [
    ["request", "stop", "cancelled", "failed", "died"],
    ["run", "died", "cancelled", "deleted"],
    ["found", "failed", "deleted_at_last"],
    ["make_warm", "died", "deleted"],
]


def lines_of(work):
    """Count the steps that a piece of work takes."""
    count = 0

    def trace(frame, event, arg):
        nonlocal count
        count += 1
        return trace

    def profile(frame, event, arg):
        nonlocal count
        count += 1

    before = sys.gettrace(), sys.getprofile()
    gc.disable()  # finalizers of others are not part of the work
    sys.settrace(trace)
    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.settrace(before[0])
        sys.setprofile(before[1])
        gc.enable()
    return count


def crowd(make_rig, key_of, size):
    """Make a core with many of everything: running, warm, waiting for a retry, queued."""
    rig = make_rig(size=size + 1, max_instances=3 * size + 1)
    for n in range(size):
        rig.run(f"r{n}")
        rig.make_warm(f"w{n}", key_of(f"k{n}"))
        rig.found(f"f{n}")
        rig.failed(f"f{n}")
    return rig


def live(rig, words):
    for word in words:
        if word == "deleted_at_last":
            rig.tick(after=0.0)
        else:
            getattr(rig, word)("new")


@pytest.mark.parametrize("words", [LIFE, *OTHER_LIVES], ids=" ".join)
def test_a_life_costs_the_same_among_few_and_among_many(make_rig, key_of, words):
    costs = []
    for size in (10, 400):
        rig = crowd(make_rig, key_of, size)
        costs.append(lines_of(lambda rig=rig: live(rig, words)))
    # A tick or a retry may take one step more in the heap of a larger crowd.
    assert abs(costs[1] - costs[0]) <= 20


def test_waiting_and_leaving_the_queue_costs_the_same_in_a_short_and_in_a_long_one(make_rig):
    costs = []
    for size in (10, 400):
        rig = make_rig(max_instances=1)
        rig.run(0)
        for n in range(1, size):
            rig.request(n)

        def come_and_go(rig=rig, middle=size // 2):
            rig.request("new")
            rig.stop(middle)
            rig.run_done(0)
            rig.deleted(0)

        costs.append(lines_of(come_and_go))
    assert costs[0] == costs[1]


def test_no_event_but_the_shutdown_looks_at_all_instances_or_sessions(make_rig, key_of, monkeypatch):
    looked = []
    rig = crowd(make_rig, key_of, 3)
    everything = Registry.all
    monkeypatch.setattr(Registry, "all", lambda registry: looked.append(1) or everything(registry))
    for words in (LIFE, *OTHER_LIVES):
        for word in words:
            live(rig, [word])
        rig = crowd(make_rig, key_of, 3)
    assert looked == []
    rig.shut_down()
    assert looked == [1, 1]


def sequences(thing, seen):
    """Yield the length of every list, tuple and deque beneath a thing."""
    if id(thing) in seen or isinstance(thing, str | type):
        return
    seen.add(id(thing))
    if isinstance(thing, list | tuple | deque):
        yield len(thing)
    if isinstance(thing, dict):
        below = [*thing.values()]
    elif isinstance(thing, list | tuple | deque | set):
        below = [*thing]
    elif isinstance(thing, msgspec.Struct):
        below = [getattr(thing, name) for name in thing.__struct_fields__]
    else:
        below = [*getattr(thing, "__dict__", {}).values()]
    for part in below:
        yield from sequences(part, seen)


def test_no_sequence_that_could_be_scanned_is_as_long_as_the_crowd_but_the_heap_of_retries(make_rig, key_of):
    rig = crowd(make_rig, key_of, 100)
    long = [n for n in sequences(rig.core, set()) if n >= 100]
    assert long == [100]
    assert len(rig.core._retries._due) == 100


def test_what_is_remembered_does_not_grow_with_the_sessions_that_have_ended(rig, monkeypatch):
    def weight():
        seen = set()
        return sum(1 for _ in sequences(rig.core, seen)) + len(seen)

    def sessions(first, last):
        for n in range(first, last):
            rig.run(n)
            rig.run_done(n)
            rig.deleted(n)
        rig.log.clear()

    sessions(0, RETIRED_IDS + 1)
    before = weight()
    sessions(RETIRED_IDS + 1, RETIRED_IDS + 500)
    assert weight() <= before * 1.01


def test_a_core_without_a_policy_has_the_default_one():
    core = Core()
    for n in range(9):
        template = events.SessionRequested(at=0.0, session_id=f"s{n}", instance_id=f"i{n}", key=None)
        core.handle(template)
    assert [view.state for view in core.sessions()].count("queued") == 1
