"""The same events give the same effects: nothing but the events decides."""

import random

import msgspec

from claude_vm.supervisor.core import effects, events
from claude_vm.supervisor.core.keys import MountKey, PoolKey
from claude_vm.supervisor.core.machine import Core
from claude_vm.supervisor.core.pool import PoolPolicy

POLICY = PoolPolicy(size=1, max_instances=4)
EVENT = (
    events.SessionRequested
    | events.StopRequested
    | events.InstanceFound
    | events.WarmRequested
    | events.ShutdownRequested
    | events.CloneDone
    | events.StartDone
    | events.ConnectDone
    | events.RunDone
    | events.DeleteDone
    | events.EffectFailed
    | events.EffectCancelled
    | events.RunStarted
    | events.VmDied
    | events.Tick
)
MOUNT = MountKey(host="/home/me/project", guest="/home/me/project", writable=True)
KEYS = [
    PoolKey(driver="sim", template=t, generation="1", cpus=1, memory_mib=512, disk_gib=4, mounts=(MOUNT,))
    for t in "ab"
]


def answer(effect, at, rng):
    fields = {"at": at, "instance_id": effect.instance_id}
    if rng.random() < 0.15:
        return events.EffectFailed(code="broken", message="m", **fields)
    match effect:
        case effects.Clone():
            return events.CloneDone(**fields)
        case effects.Start():
            return events.StartDone(restored=True, **fields)
        case effects.Connect():
            return events.ConnectDone(**fields)
        case effects.Run(session_id=session):
            return events.RunDone(session_id=session, status=rng.randrange(256), **fields)
        case _:
            return events.DeleteDone(**fields)


class Day:
    """A lively day of a core, and the record of it."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.core = Core(POLICY)
        self.tape = []
        self.flying = {}
        self.alarms = []

    def play(self, event):
        result = self.core.handle(event)
        self.tape.append((event, result))
        for effect in result:
            if isinstance(effect, effects.InstanceEffect):
                self.flying[effect.instance_id] = effect
            if isinstance(effect, effects.WakeAt):
                self.alarms.append(effect.deadline)

    def next_event(self, n):
        """Choose what happens at instant n."""
        at, roll, key = float(n), self.rng.random(), self.rng.choice(KEYS)
        if self.alarms and min(self.alarms) <= at:
            self.alarms.remove(min(self.alarms))
            return events.Tick(at=at)
        if self.flying and roll < 0.7:
            return answer(self.flying.pop(self.rng.choice(sorted(self.flying))), at, self.rng)
        sessions = self.core.sessions()
        if sessions and roll < 0.75:
            name = self.rng.choice(sessions).session_id
            return events.StopRequested(at=at, session_id=name, reason="asked", status=130)
        if roll < 0.8:
            return events.WarmRequested(at=at, instance_id=f"i{n}", key=key)
        return events.SessionRequested(at=at, session_id=f"s{n}", instance_id=f"i{n}", key=key)


def record(seed):
    """Play a day to its end; return its events and the effects of each."""
    day = Day(seed)
    for n in range(400):
        day.play(day.next_event(n))
    day.play(events.ShutdownRequested(at=400.0))
    return day.tape


def test_replaying_the_recorded_events_gives_the_same_effects():
    for seed in range(10):
        tape = record(seed)
        again = Core(POLICY)
        assert [again.handle(event) for event, _ in tape] == [result for _, result in tape]


def test_events_that_went_through_json_give_the_same_effects():
    tape = record(77)
    text = msgspec.json.encode([event for event, _ in tape])
    read = msgspec.json.decode(text, type=list[EVENT])
    assert read == [event for event, _ in tape]
    again = Core(POLICY)
    assert [again.handle(event) for event in read] == [result for _, result in tape]


def test_the_recorded_day_has_everything_in_it():
    kinds = {type(effect) for seed in range(10) for _, result in record(seed) for effect in result}
    assert kinds >= {
        effects.Clone,
        effects.Start,
        effects.Connect,
        effects.Run,
        effects.Delete,
        effects.Cancel,
        effects.WakeAt,
        effects.TellSession,
        effects.EndSession,
    }
