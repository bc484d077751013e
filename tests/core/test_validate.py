"""Each invariant can fail: what it is about is broken by hand, and it is named."""

import msgspec
import pytest

from claude_vm.supervisor.core.due import Refill, Retry
from claude_vm.supervisor.core.instance import UNKNOWN_KEY, InstanceState
from claude_vm.supervisor.core.invariants import BrokenInvariant
from claude_vm.supervisor.core.registry import RETIRED_IDS
from claude_vm.supervisor.core.session import Outcome, SessionState


class Inside:
    """A core that has everything but a queue, or a full one with a queue; and its parts."""

    def __init__(self, make_rig, key_of):
        self.key_of = key_of
        rig = make_rig(size=1, max_instances=9)
        rig.run(1)
        rig.make_warm(2, key_of("warm"))
        rig.demand(3, key_of("making"))
        rig.found(4)
        rig.failed(4)
        full = make_rig(max_instances=1)
        full.run(1)
        full.request(2)
        self.core, self.full = rig.core, full.core
        self.agenda, self.lives = self.core._agenda, self.core._lives
        self.pools, self.refills = self.core._supply._pools, self.core._supply._refills
        self.memory, self.generations = self.pools.memory, self.core._supply._generations
        self.sessions, self.instances = self.lives.sessions, self.lives.instances
        self.session, self.running = self.sessions["s1"], self.instances["i1"]
        self.warm, self.stuck = self.instances["i2"], self.instances["i4"]
        self.queue = self.full._queue

    def pool(self, name="t"):
        return self.pools.find(self.key_of(name))

    def obey(self, core, **changes):
        pools = core._supply._pools
        pools.policy = msgspec.structs.replace(pools.policy, **changes)

    def invariants(self):
        return [*self.core.invariants(), *self.full.invariants()]


BREAKS = {
    "the awaited keys are counted right": lambda i: i.queue._awaited.clear(),
    "each id is promised once": lambda i: i.queue._promised.clear(),
    "what is in the queue waits": lambda i: setattr(i.queue.head, "state", SessionState.RUNNING),
    "its story ends where it stands": lambda i: i.instances._stories._live.clear(),
    "it lives": lambda i: setattr(i.session, "state", SessionState.ENDED),
    "it has not ended before": lambda i: i.sessions._retired.update({"s1": None}),
    "few ended ids are kept": lambda i: i.sessions._retired.update(dict.fromkeys(range(RETIRED_IDS + 1))),
    "they are counted by their states": lambda i: i.lives._counts.update({InstanceState.RUNNING: 2}),
    "none is counted twice": lambda i: i.lives._counts.update({InstanceState.PAUSED: 1}),
    "its instance is as far as itself": lambda i: setattr(i.session, "state", SessionState.PREPARING),
    "its instance is its own, and of its key": lambda i: setattr(i.running, "key", i.key_of("x")),
    "how its instance came is known": lambda i: setattr(i.session, "source", ""),
    "it ends with an outcome": lambda i: setattr(i.session, "outcome", Outcome(0)),
    "one effect of its state is in flight": lambda i: setattr(i.running, "in_flight", None),
    "its session is its own": lambda i: setattr(i.running, "session_id", "s7"),
    "a session has what is used, and nothing that only waits": lambda i: setattr(i.warm, "session_id", "s1"),
    "only garbage has no key": lambda i: setattr(i.warm, "key", UNKNOWN_KEY),
    "a leak was tried often enough": lambda i: setattr(i.stuck, "failed_deletions", 9),
    "who waits is in it": lambda i: i.queue.remove(i.queue.head),
    "it has what nobody has claimed": lambda i: i.pool("warm").warm.clear(),
    "it counts what sessions have": lambda i: setattr(i.pool(), "claimed", 2),
    "what is due is due for a reason": lambda i: i.agenda.discard(Retry("i4")),
    "an alarm comes early enough": lambda i: i.agenda._alarms.clear(),
    "nobody waits for what there is": lambda i: i.obey(i.full, max_instances=2),
    "it has no more than there is room for": lambda i: i.obey(i.core, max_instances=2),
    "nobody waits, and nothing is kept, at the end": lambda i: setattr(i.core, "_stopping", True),
    "something is in the pool, or wanted": lambda i: i.pools.pool(i.key_of("x")),
    "what will be paused is being made": lambda i: i.pool("warm").to_pause.add("i2"),
    "what is unclaimed is wanted": lambda i: setattr(i.pool("warm"), "wanted", False),
    "its counts are not below zero": lambda i: setattr(i.pool(), "credit", -1),
    "the error of the last failure is known": lambda i: setattr(i.pool(), "failures", 1),
    "each kind is counted right": lambda i: i.memory._counts.clear(),
    "the sums are right": lambda i: setattr(i.memory, "used_mib", 1),
    "its template knows it": lambda i: i.pools._of_template.clear(),
    "what is ready has its rank": lambda i: i.pools._ready[True].discard(i.key_of("warm")),
    "it knows what is being made": lambda i: i.pools._unfinished.clear(),
    "no template knows more": lambda i: i.pools._of_template.update({("x", "x"): {i.key_of("x"): None}}),
    "nothing else has a rank": lambda i: i.pools._ready[True].put(i.key_of("x"), 0.0),
    "what lacks something is at one station": lambda i: i.refills._starved.put(i.key_of("warm"), 1.0),
    "it waits until its instant": lambda i: i.agenda.set(Refill(i.key_of()), 1.0),
    "it stands where it belongs": lambda i: i.refills._in_line.put(i.key_of(), (True, True, 0.0)),
    "room is kept for who waits": lambda i: i.refills._waiting.update({i.key_of("warm"): i.pool("warm")}),
    "what is asked for is known": lambda i: i.refills._asked.update({i.key_of(): 1}),
    "nothing else is at a station": lambda i: i.refills._starved.put(i.key_of("x"), 1.0),
    "what is wanted is of today": lambda i: i.generations.hear("sim", "warm", "9"),
}


@pytest.fixture
def inside(make_rig, key_of):
    return Inside(make_rig, key_of)


@pytest.mark.parametrize("statement", BREAKS)
def test_an_invariant_that_does_not_hold_is_told(inside, statement):
    assert all(invariant.holds for invariant in inside.invariants())
    BREAKS[statement](inside)
    assert statement in {invariant.statement for invariant in inside.invariants() if not invariant.holds}


def test_every_invariant_is_broken_above(inside):
    assert {invariant.statement for invariant in inside.invariants()} == BREAKS.keys()


def test_what_does_not_hold_is_raised_with_what_it_is_about(inside):
    inside.core.validate()
    inside.session.source = ""
    with pytest.raises(BrokenInvariant, match=r"^s1: how its instance came is known$") as caught:
        inside.core.validate()
    assert caught.value.code == "broken-invariant"
    assert [invariant.subject for invariant in caught.value.broken] == ["s1"]
    inside.session.source = "made"
