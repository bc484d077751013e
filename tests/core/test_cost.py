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
from claude_vm.supervisor.core.core import Core
from claude_vm.supervisor.core.due import Idle
from claude_vm.supervisor.core.effects import Run
from claude_vm.supervisor.core.lives import Reaction
from claude_vm.supervisor.core.policy import PoolPolicy
from claude_vm.supervisor.core.registry import RETIRED_IDS, Registry


@pytest.fixture(autouse=True)
def validated():
    """What is counted here is what an event costs; to validate a crowd costs more, the larger it is."""


LIFE = ["request", "cloned", "started", "connected", "run_started", "run_done", "deleted"]
OTHER_LIVES = [
    ["request", "stop", "cancelled", "failed", "died"],
    ["run", "died", "cancelled", "deleted"],
    ["found", "failed", "deleted_at_last"],
    ["make_warm", "died", "deleted"],
    ["make_warm", "claim", "run_done_9"],
    ["make_warm", "drain", "deleted"],
    ["make_warm", "change", "deleted"],
    ["make_warm", "age"],
    ["fill", "idle"],
    ["warm_found", "connected", "claim"],
    ["demand", "claim", "connect", "run_done_9", "deleted"],
    ["demand", "cloned", "claim", "failed", "deleted"],
    ["session_found", "stop", "cancelled", "deleted"],
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
    """Make a core with many of everything: running, warm, waiting for a retry, and keys that are wanted."""
    rig = make_rig(size=1, max_instances=3 * size + 9, memory_budget_mib=512 * (size + 2))
    for n in range(size):
        rig.run(f"r{n}")
        rig.make_warm(f"w{n}", key_of(f"k{n}"))
        rig.found(f"f{n}")
        rig.failed(f"f{n}")
    return rig


def live(rig, words, key):
    """Let things happen to an instance of a key of its own, or of the crowd's sessions' one."""
    deeds = {
        "demand": lambda: rig.demand("new", key),
        "make_warm": lambda: rig.make_warm("new", key),
        "claim": lambda: rig.request(9, key),
        "run_done_9": lambda: rig.run_done("new", session=9),
        "drain": lambda: rig.drain(key),
        "change": lambda: rig.change("2", key.template),
        "fill": lambda: rig.fill(key=key),
        "warm_found": lambda: rig.warm_found("new", key),
        "idle": lambda: rig.core._supply.due(Idle(key), rig.now + 1800.0),
        "age": lambda: rig.core._give_up(["inew"], Reaction(events.Tick(at=rig.now), []), "too old"),
        "deleted_at_last": lambda: rig.tick(after=0.0),
    }
    for word in words:
        deeds.get(word, lambda word=word: getattr(rig, word)("new"))()


@pytest.mark.parametrize("words", [LIFE, *OTHER_LIVES], ids=" ".join)
def test_a_life_costs_the_same_among_few_and_among_many(make_rig, key_of, words):
    costs = []
    for size in (10, 400):
        rig = crowd(make_rig, key_of, size)
        costs.append(lines_of(lambda rig=rig: live(rig, words, key_of("new"))))
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


def test_taking_over_what_is_being_made_costs_the_same_among_few_and_among_many_of_its_key(make_rig, key_of):
    costs = []
    for size in (10, 400):
        rig = make_rig(paused=1, max_instances=size + 9, prestart_drivers=frozenset({"sim"}))
        rig.fill()
        rig.warm("p", paused=True)  # the oldest, and the last choice
        rig.obey(size=1, paused=1, max_instances=size + 9, prestart_drivers=frozenset({"sim"}))
        for n in range(size):
            rig.warm_found(n)
        costs.append(lines_of(lambda rig=rig: rig.request("new")))
        assert rig.core.session_of("i0") == "snew"
    assert abs(costs[1] - costs[0]) <= 20


def test_no_event_but_the_shutdown_looks_at_all_instances_or_sessions(make_rig, key_of, monkeypatch):
    looked = []
    rig = crowd(make_rig, key_of, 3)
    everything = Registry.all
    monkeypatch.setattr(Registry, "all", lambda registry: looked.append(1) or everything(registry))
    for words in (LIFE, *OTHER_LIVES):
        for word in words:
            live(rig, [word], key_of("new"))
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


def test_no_sequence_that_could_be_scanned_is_as_long_as_the_crowd_but_the_heaps(make_rig, key_of):
    rig = crowd(make_rig, key_of, 100)
    heaps = [rig.core._agenda._heap, rig.core._supply._pools._ready[True]._heap]
    assert all(len(heap) >= 100 for heap in heaps)
    long = [n for n in sequences(rig.core, set()) if n >= 100]
    assert sorted(long) == sorted(map(len, heaps))


def test_what_is_remembered_does_not_grow_with_the_sessions_that_have_ended(rig, monkeypatch):
    def weight():
        seen = set()
        return sum(1 for _ in sequences(rig.core, seen)) + len(seen)

    def sessions(first, last):
        for n in range(first, last):
            rig.run(n)
            rig.run_done(n)
            rig.deleted(n)
            rig.now += 0.01
        rig.log.clear()

    sessions(0, RETIRED_IDS + 1)
    before = weight()
    sessions(RETIRED_IDS + 1, RETIRED_IDS + 500)
    assert weight() <= before * 1.01


def test_what_is_remembered_does_not_grow_with_the_claims_and_the_keys_of_the_past(make_rig, key_of):
    rig = make_rig(size=1, max_instances=1000, idle_timeout_s=20.0)

    def claim(n):
        key = key_of(f"k{n % 50 + 50 * (n // 500)}")  # 50 keys at a time, and other ones after 500 claims
        (effect,) = rig.request(n, key)
        if not isinstance(effect, Run):
            (effect,) = rig.connect(n)
        name = effect.instance_id[1:]
        rig.run_done(name, session=n)
        rig.deleted(name)
        rig.tick(after=0.3)
        for asked, _ in rig.asked:
            rig.warm(f"-{n}", asked)
            rig.connect(f"-{n}")
        return name != str(n)

    sizes, warm = [], 0
    for part in range(4):
        warm += sum(claim(n) for n in range(1000 * part + 1, 1000 * part + 1001))
        seen = set()
        sizes.append(sum(sequences((rig.core._agenda, rig.core._supply), seen)) + len(seen))
    assert warm > 1000
    assert max(sizes) <= 1.3 * sizes[0]


def test_a_core_without_a_policy_has_the_default_one(key_of):
    core = Core()
    assert core.policy == PoolPolicy()
    for n in range(9):
        fields = {"session_id": f"s{n}", "instance_id": f"i{n}", "key": key_of()}
        core.handle(events.SessionRequested(at=0.0, **fields))
    assert [view.state for view in core.sessions()].count("queued") == 1
