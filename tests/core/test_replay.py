"""The same events give the same effects: nothing but the events decides."""

import random

import msgspec

from claude_vm.supervisor.core import effects, events
from claude_vm.supervisor.core.core import Core
from claude_vm.supervisor.core.keys import MountKey, PoolKey
from claude_vm.supervisor.core.policy import PoolPolicy

POLICY = PoolPolicy(
    size=1, max_instances=5, paused=1, memory_budget_mib=1024, prestart_drivers=frozenset({"sim"})
)
EVENT = (
    events.SessionRequested
    | events.StopRequested
    | events.InstanceFound
    | events.WarmRequested
    | events.FillRequested
    | events.DrainRequested
    | events.TemplateChanged
    | events.PolicyChanged
    | events.WarmFound
    | events.SessionFound
    | events.SessionLost
    | events.ShutdownRequested
    | events.CloneDone
    | events.PrestartDone
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
ANSWERS = {
    effects.Clone: events.CloneDone,
    effects.Prestart: events.PrestartDone,
    effects.Connect: events.ConnectDone,
    effects.Delete: events.DeleteDone,
}
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
        case effects.Start():
            return events.StartDone(restored=True, **fields)
        case effects.Run(session_id=session):
            return events.RunDone(session_id=session, status=rng.randrange(256), **fields)
        case _:
            return ANSWERS[type(effect)](**fields)


class Day:
    """A lively day of a core, and the record of it."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.core = Core(POLICY)
        self.tape = []
        self.flying = {}
        self.alarms = []
        self.wanted = []

    def play(self, event):
        result = self.core.handle(event)
        self.tape.append((event, result))
        for effect in result:
            if isinstance(effect, effects.InstanceEffect):
                self.flying[effect.instance_id] = effect
            if isinstance(effect, effects.RequestWarm):
                self.wanted.append(effect)
            if isinstance(effect, effects.WakeAt):
                self.alarms.append(effect.deadline)

    def next_event(self, n):
        """Choose what happens at instant n."""
        at, roll, key = float(n), self.rng.random(), self.rng.choice(KEYS)
        if self.alarms and min(self.alarms) <= at:
            self.alarms.remove(min(self.alarms))
            return events.Tick(at=at)
        if self.wanted:
            ask = self.wanted.pop()
            return events.WarmRequested(at=at, instance_id=f"i{n}", key=ask.key, paused=ask.paused)
        if self.flying and roll < 0.7:
            return answer(self.flying.pop(self.rng.choice(sorted(self.flying))), at, self.rng)
        sessions = self.core.sessions()
        if sessions and roll < 0.75:
            name = self.rng.choice(sessions).session_id
            return events.StopRequested(at=at, session_id=name, reason="asked", status=130)
        if roll < 0.8:
            return self.demand(n, key)
        return events.SessionRequested(at=at, session_id=f"s{n}", instance_id=f"i{n}", key=key)

    def demand(self, n, key):
        at, name = float(n), f"i{n}"
        match self.rng.randrange(6):
            case 0:
                return events.DrainRequested(at=at, key=key)
            case 1:
                return events.TemplateChanged(at=at, driver="sim", template="b", generation="2")
            case 2:
                return events.PolicyChanged(at=at, policy=msgspec.structs.replace(POLICY, size=n % 3))
            case 3:
                return events.WarmFound(at=at, instance_id=name, key=key, made_at=at - 100.0)
            case 4:
                found = events.SessionFound(at=at, session_id=f"s{n}", instance_id=name, key=key)
                lost = events.SessionLost(at=at, session_id=f"s{n}", code="session-lost", message="m")
                return lost if n % 2 else found
            case _:
                return events.FillRequested(at=at, key=key, size=2)


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
        effects.RequestWarm,
        effects.Prestart,
        effects.Start,
        effects.Connect,
        effects.Run,
        effects.Delete,
        effects.Cancel,
        effects.WakeAt,
        effects.TellSession,
        effects.EndSession,
    }
