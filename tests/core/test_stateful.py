"""The core against a world in which everything that can happen does, in any order.

The world answers effects as a dispatcher would: one answer each, at any time, done or failed or, once
`Cancel` has been asked for, cancelled. It keeps its own books, and compares.
"""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from claude_vm.supervisor.core import effects, events
from claude_vm.supervisor.core.errors import InvalidTransition
from claude_vm.supervisor.core.instance import InstanceState
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.core.machine import Core
from claude_vm.supervisor.core.pool import PoolPolicy
from claude_vm.supervisor.core.session import SessionState

KEYS = [
    PoolKey(driver="sim", template=name, generation="1", cpus=1, memory_mib=512, disk_gib=4) for name in "ab"
]
DONE = {
    effects.Clone: events.CloneDone,
    effects.Start: events.StartDone,
    effects.Connect: events.ConnectDone,
    effects.Run: events.RunDone,
    effects.Delete: events.DeleteDone,
}
WITHOUT_EFFECT = {InstanceState.WARM, InstanceState.STUCK, InstanceState.LEAKED}


class World(RuleBasedStateMachine):
    """Books: `flying` effects in flight by instance, `asked` for cancellation, `ends` of sessions."""

    sessions = Bundle("sessions")

    @initialize(size=st.integers(0, 2), ceiling=st.integers(1, 4))
    def begin(self, size, ceiling):
        self.ceiling = ceiling
        self.core = Core(PoolPolicy(size=size, max_instances=ceiling))
        self.now = 0.0
        self.names = 0
        self.flying = {}
        self.asked = set()
        self.began = set()  # runs that were told to have started
        self.ran = set()
        self.made = set()
        self.found = set()
        self.deleted = set()
        self.failures = {}
        self.leaks = []
        self.alarms = []
        self.requested = {}
        self.place = {}  # instance of each session that got one
        self.settled = {}  # what a session's end must be, once that is certain
        self.ends = {}
        self.shutting_down = False
        self.stops = 0

    def name(self, prefix):
        self.names += 1
        return f"{prefix}{self.names}"

    def send(self, event):
        for effect in self.core.handle(event):
            self.take(effect)

    def take(self, effect):
        match effect:
            case effects.InstanceEffect(instance_id=name):
                assert name not in self.flying, "two effects in flight"
                assert name not in self.deleted, "an effect for something that is gone"
                self.check_order(effect)
                self.flying[name] = effect
            case effects.Cancel(instance_id=name):
                assert name in self.flying, "nothing to cancel"
                assert name not in self.asked, "cancelled twice"
                assert not isinstance(self.flying[name], effects.Delete)
                self.asked.add(name)
            case effects.WakeAt(deadline=deadline):
                assert deadline > self.now
                self.alarms.append(deadline)
            case effects.TellSession(session_id=name):
                assert name in self.requested
                assert name not in self.ends
            case effects.EndSession(session_id=name):
                self.check_end(name, effect)
                self.ends[name] = effect
            case effects.ReportLeak(instance_id=name):
                assert name not in self.leaks, "told twice"
                self.leaks.append(name)
            case effects.StopServing():
                assert self.shutting_down
                assert set(self.requested) == set(self.ends)
                assert self.made - self.deleted <= set(self.leaks)
                self.stops += 1

    def check_order(self, effect):
        name = effect.instance_id
        match effect:
            case effects.Clone():
                assert name not in self.made
                self.made.add(name)
            case effects.Run(session_id=session):
                assert name not in self.ran, "a used instance is used again"
                assert session not in self.place.values()
                self.ran.add(name)
                self.place[name] = session
            case _:
                assert name in self.made

    def check_end(self, name, effect):
        assert name in self.requested, "an end of nothing"
        assert name not in self.ends, "ended twice"
        for instance, session in self.place.items():
            if session == name:
                assert instance in self.deleted or self.failures.get(instance, 0) > 0, "ended too early"
        if name in self.settled:
            assert (effect.status, effect.code) == self.settled[name][:2]

    def settle(self, session, status, code, *, asked=False):
        """The first reason counts, but a command's own end counts more than a request to stop."""
        before = self.settled.get(session)
        if before is None or (before[2] and code == ""):
            self.settled[session] = (status, code, asked)

    def session_of(self, instance):
        views = [v for v in self.core.instances() if v.instance_id == instance]
        return views[0].session_id if views else None

    # What clients and users do.

    @rule(target=sessions, key=st.sampled_from(KEYS))
    def request(self, key):
        session, instance = self.name("s"), self.name("i")
        self.requested[session] = instance
        if self.shutting_down:
            self.settle(session, 125, "shutting-down")
        self.send(events.SessionRequested(at=self.now, session_id=session, instance_id=instance, key=key))
        assert (session in self.ends) == self.shutting_down
        return session

    @rule(session=sessions, status=st.sampled_from([130, 141]))
    def stop(self, session, status):
        if session not in self.ends:
            self.settle(session, status, "stopped", asked=True)
        self.send(events.StopRequested(at=self.now, session_id=session, reason="asked", status=status))

    @rule()
    def find(self):
        name = self.name("i")
        self.made.add(name)
        self.found.add(name)
        self.send(events.InstanceFound(at=self.now, instance_id=name, reason="left behind"))

    @rule(key=st.sampled_from(KEYS))
    def ask_for_warm(self, key):
        self.send(events.WarmRequested(at=self.now, instance_id=self.name("i"), key=key))

    @precondition(lambda self: self.names > 30)
    @rule()
    def shut_down(self):
        if not self.shutting_down:
            for session in set(self.requested) - set(self.ends):
                self.settle(session, 125, "daemon-stopped", asked=True)
        self.shutting_down = True
        self.send(events.ShutdownRequested(at=self.now))

    # What the outside does.

    def answer(self, name, event):
        effect = self.flying.pop(name)
        self.asked.discard(name)
        if isinstance(event, events.DeleteDone):
            self.deleted.add(name)
        if isinstance(event, events.EffectFailed) and isinstance(effect, effects.Delete):
            self.failures[name] = self.failures.get(name, 0) + 1
        self.send(event)

    def done(self, name, status=0):
        kind = DONE[type(self.flying[name])]
        extra = {}
        if kind is events.StartDone:
            extra = {"restored": True}
        if kind is events.RunDone:
            session = self.flying[name].session_id
            extra = {"session_id": session, "status": status}
            self.settle(session, status, "")
        self.answer(name, kind(at=self.now, instance_id=name, **extra))

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), status=st.sampled_from([0, 3]))
    def effect_is_done(self, data, status):
        self.done(data.draw(st.sampled_from(sorted(self.flying))), status)

    @precondition(lambda self: self.flying)
    @rule(steps=st.integers(1, 4))
    def all_goes_well_for_a_while(self, steps):
        """Without this, hardly a session would come as far as its run."""
        for _ in range(steps):
            for name in sorted(self.flying):
                if not isinstance(self.flying[name], effects.Run):
                    self.done(name)
                    self.the_books_agree()
        for name in self.runs():
            self.start_command(name)

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def effect_fails(self, data):
        name = data.draw(st.sampled_from(sorted(self.flying)))
        session = self.session_of(name)
        if session and not isinstance(self.flying[name], effects.Delete):
            self.settle(session, 125, "broken")
        self.answer(name, events.EffectFailed(at=self.now, instance_id=name, code="broken", message="m"))

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def effect_is_cancelled(self, data):
        name = data.draw(st.sampled_from(sorted(self.asked)))
        self.answer(name, events.EffectCancelled(at=self.now, instance_id=name))

    def runs(self):
        return sorted(
            name
            for name, effect in self.flying.items()
            if isinstance(effect, effects.Run) and name not in self.began
        )

    @precondition(lambda self: self.runs())
    @rule(data=st.data())
    def command_starts(self, data):
        self.start_command(data.draw(st.sampled_from(self.runs())))

    def start_command(self, name):
        self.began.add(name)
        session = self.flying[name].session_id
        self.send(events.RunStarted(at=self.now, instance_id=name, session_id=session))

    @precondition(lambda self: self.made)
    @rule(data=st.data())
    def vm_dies(self, data):
        self.let_die(data.draw(st.sampled_from(sorted(self.made))))

    @precondition(lambda self: self.running())
    @rule(data=st.data(), then=st.sampled_from(["done", "stopped", "cancelled", "nothing"]))
    def vm_of_a_running_command_dies(self, data, then):
        name = data.draw(st.sampled_from(self.running()))
        session = self.flying[name].session_id
        self.let_die(name)
        if then == "done":
            self.done(name, 3)
        if then == "stopped":
            self.stop(session, 130)
        if then == "cancelled":
            self.answer(name, events.EffectCancelled(at=self.now, instance_id=name))

    def running(self):
        runs = {name for name, effect in self.flying.items() if isinstance(effect, effects.Run)}
        return sorted(runs - self.asked)

    @precondition(lambda self: self.running())
    @rule(data=st.data(), status=st.sampled_from([0, 3]), asked=st.booleans())
    def command_ends(self, data, status, asked):
        name = data.draw(st.sampled_from(self.running()))
        if asked:
            self.stop(self.flying[name].session_id, 130)
        self.done(name, status)

    def let_die(self, name):
        session = self.session_of(name)
        if session:
            self.settle(session, 125, "vm-died")
        self.send(events.VmDied(at=self.now, instance_id=name, reason="killed"))

    @rule(seconds=st.sampled_from([0.1, 1.0, 7.0, 61.0]))
    def time_passes(self, seconds):
        self.pass_time(self.now + seconds)

    def pass_time(self, until):
        while due := [deadline for deadline in self.alarms if deadline <= until]:
            self.now = min(due)
            self.alarms.remove(self.now)
            self.send(events.Tick(at=self.now))
        self.now = until

    # What must not happen.

    @precondition(lambda self: self.made)
    @rule(data=st.data(), kind=st.sampled_from([*DONE.values(), events.EffectFailed, events.EffectCancelled]))
    def an_answer_that_nobody_waits_for_is_refused(self, data, kind):
        idle = [*sorted(self.made - set(self.flying)), "i-never-made"]
        name = data.draw(st.sampled_from(idle))
        extra = {
            events.StartDone: {"restored": True},
            events.RunDone: {"session_id": "s1", "status": 0},
            events.EffectFailed: {"code": "c", "message": "m"},
        }
        before = (self.core.instances(), self.core.sessions(), self.core.instance_story(name))
        with pytest.raises(InvalidTransition):
            self.core.handle(kind(at=self.now, instance_id=name, **extra.get(kind, {})))
        assert (self.core.instances(), self.core.sessions(), self.core.instance_story(name)) == before

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), kind=st.sampled_from(sorted(DONE.values(), key=repr)))
    def an_answer_to_another_effect_is_refused(self, data, kind):
        name = data.draw(st.sampled_from(sorted(self.flying)))
        extra = {
            events.StartDone: {"restored": True},
            events.RunDone: {"session_id": "s-of-nobody", "status": 0},
        }
        event = kind(at=self.now, instance_id=name, **extra.get(kind, {}))
        if kind is DONE[type(self.flying[name])] and kind is not events.RunDone:
            return
        before = (self.core.instances(), self.core.sessions(), self.core.instance_story(name))
        with pytest.raises(InvalidTransition):
            self.core.handle(event)
        assert (self.core.instances(), self.core.sessions(), self.core.instance_story(name)) == before

    @invariant()
    def the_books_agree(self):
        instances = {view.instance_id: view for view in self.core.instances()}
        sessions = {view.session_id: view for view in self.core.sessions()}
        assert set(instances) == self.made - self.deleted, "an instance is forgotten or made up"
        assert set(sessions) == set(self.requested) - set(self.ends), "a session is forgotten or made up"
        for name, view in instances.items():
            assert (name in self.flying) == (view.state not in WITHOUT_EFFECT)
            assert (name in self.asked) == (view.state is InstanceState.ABANDONED)
            if view.state is InstanceState.WARM:
                assert view.session_id is None, "leased and warm"
                assert name not in self.ran, "warm again"
            if view.state in WITHOUT_EFFECT:
                assert view.session_id is None
            if view.session_id:
                assert sessions[view.session_id].instance_id == name
        leases = [view.session_id for view in instances.values() if view.session_id]
        assert len(leases) == len(set(leases)), "two instances for one session"
        for name, view in sessions.items():
            if view.state is SessionState.QUEUED:
                assert view.instance_id is None
            else:
                assert instances[view.instance_id].session_id == name, "leased twice"

    @invariant()
    def there_are_no_more_instances_than_allowed(self):
        ours = [v for v in self.core.instances() if v.instance_id not in self.found]
        assert len([v for v in ours if v.instance_id not in self.leaks]) <= self.ceiling

    @invariant()
    def nobody_waits_for_nothing(self):
        views = self.core.sessions()
        queued = [view for view in views if view.state is SessionState.QUEUED]
        assert queued == [] or self.flying or self.alarms
        if queued:
            warm = {v.key for v in self.core.instances() if v.state is InstanceState.WARM}
            assert queued[0].key not in warm

    @invariant()
    def whoever_waits_for_another_try_has_an_alarm(self):
        stuck = [v for v in self.core.instances() if v.state in {InstanceState.STUCK, InstanceState.LEAKED}]
        assert not stuck or self.alarms

    def teardown(self):
        if not hasattr(self, "core"):
            return
        for _ in range(10 * self.names + 100):
            if self.flying:
                self.done(min(self.flying))
            elif self.alarms:
                self.pass_time(min(self.alarms))
            self.the_books_agree()
        assert set(self.ends) == set(self.requested), "a session is forgotten"
        assert self.settled.keys() >= self.ends.keys()
        if not self.shutting_down:
            assert all(view.state is InstanceState.WARM for view in self.core.instances())
            self.shut_down()
            while self.flying:
                self.done(min(self.flying))
        assert self.deleted == self.made, "an instance is left"
        assert self.stops == 1
        assert self.core.is_empty


TestWorld = World.TestCase
TestWorld.settings = settings(
    max_examples=200,
    stateful_step_count=60,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
