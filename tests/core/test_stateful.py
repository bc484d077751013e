"""The core against a world in which everything that can happen does, in any order.

The world answers effects as a dispatcher would: one answer each, at any time, done or failed or, once
`Cancel` has been asked for, cancelled. It keeps its own books, and compares.
"""

import os

import msgspec
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
from claude_vm.supervisor.core.core import Core
from claude_vm.supervisor.core.errors import InvalidTransition
from claude_vm.supervisor.core.instance import IN_USE, UNCLAIMED, InstanceState
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.core.policy import PoolPolicy
from claude_vm.supervisor.core.pool.refills import MAX_MAKING
from claude_vm.supervisor.core.session import SessionState

MEMORY_MIB = {"a": 512, "b": 1024}
TEMPLATES = st.sampled_from(sorted(MEMORY_MIB))
POLICIES = st.builds(
    PoolPolicy,
    size=st.sampled_from([0, 1, 1, 2]),
    max_instances=st.integers(1, 6),
    paused=st.integers(0, 1),
    idle_timeout_s=st.sampled_from([200.0, 500.0]),
    max_age_s=st.sampled_from([300.0, 2000.0]),
    memory_budget_mib=st.sampled_from([None, 600, 1100, 1600, 4000]),
    memory_reserve_mib=st.sampled_from([0, 0, 200]),
    prestart_drivers=st.just(frozenset({"sim"})),
)
DONE = {
    effects.Clone: events.CloneDone,
    effects.Prestart: events.PrestartDone,
    effects.Start: events.StartDone,
    effects.Connect: events.ConnectDone,
    effects.Run: events.RunDone,
    effects.Delete: events.DeleteDone,
}
THEN = st.sampled_from(["fail", "die", "stop", "nothing", "nothing"])
READY = {InstanceState.WARM, InstanceState.PAUSED}
PHASES = {
    InstanceState.CLONING: "clone",
    InstanceState.PRESTARTING: "start",
    InstanceState.STARTING: "start",
    InstanceState.CONNECTING: "connect",
    InstanceState.LEASED: "run",
    InstanceState.DELETING: "delete",
}
LEAVING = {
    InstanceState.ABANDONED,
    InstanceState.DELETING,
    InstanceState.STUCK,
    InstanceState.LEAKED,
}
WITHOUT_EFFECT = READY | {InstanceState.STUCK, InstanceState.LEAKED}


class World(RuleBasedStateMachine):
    """Books: `flying` effects in flight by instance, `asked` for cancellation, `ends` of sessions.

    `wanted` are the pool's requests without an answer, `used` the instants of each key's last use as far as
    they are certain (else a later one), `changed` the generations that were told, `told` the last phase of
    each session, `to_pause` the instances that were made to be paused. `figures` are what the kinds were
    measured to take. `displaced` counts the events at which something gave way to another
    unclaimed instance, `granted` those that uses and other settings are reason enough for.
    """

    sessions = Bundle("sessions")

    @initialize(policy=POLICIES)
    def begin(self, policy):
        self.policy = policy
        self.core = Core(policy)
        self.wanted = []
        self.used = {}
        self.barred = {}  # the instant before which nothing is made ahead for a key
        self.changed = {}
        self.heard = {}  # the last generation of each template that the core can know
        self.generations = dict.fromkeys(MEMORY_MIB, 1)
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
        self.parted = set()  # sessions that have lost an instance before their command ran
        self.place = {}  # instance of each session that got one
        self.told = {}
        self.to_pause = set()
        self.settled = {}  # what a session's end must be, once that is certain
        self.ends = {}
        self.shutting_down = False
        self.stops = 0
        self.figures = {}
        self.granted = 0
        self.displaced = 0

    def name(self, prefix):
        self.names += 1
        return f"{prefix}{self.names}"

    def key(self, template, age=0):
        """The key of a template's generation of today, or of an earlier one."""
        generation = f"{max(1, self.generations[template] - age):03}"
        memory_mib = MEMORY_MIB[template]
        return PoolKey(
            driver="sim", template=template, generation=generation, cpus=1, memory_mib=memory_mib, disk_gib=4
        )

    def send(self, event):
        before, unclaimed = self.in_use(), {v.instance_id for v in self.unclaimed()}
        out = self.core.handle(event)
        for name in unclaimed - {v.instance_id for v in self.unclaimed()}:
            if "another one needed the room" in [step.note for step in self.core.instance_story(name).steps]:
                self.displaced += 1
                break
        for name, key in before.items():
            if name not in self.in_use():
                self.use(key)
        for effect in out:
            self.take(effect)
        if any(isinstance(effect, effects.Clone | effects.RequestWarm) for effect in out):
            self.check_making(out)

    def in_use(self):
        views = self.core.instances()
        return {v.instance_id: v.key for v in views if v.session_id and v.state in IN_USE}

    def takes_mib(self, key):
        return self.figures.get(key, key.memory_mib)

    def used_mib(self):
        return sum(self.takes_mib(view.key) for view in self.unclaimed())

    def use(self, key):
        self.granted += max(self.policy.size, 3) + self.policy.paused + 1
        generation = self.changed.get(key.template) or key.generation
        self.used[msgspec.structs.replace(key, generation=generation)] = self.now

    def notice(self, key):
        """A key of a later generation than any before is news like that of a build."""
        if key.generation > self.heard.get(key.template, ""):
            self.turn_over(key.template, key.generation)

    def turn_over(self, template, generation):
        self.changed[template] = generation
        self.heard[template] = generation or self.heard.get(template, "")
        old = [key for key in self.used if key.template == template and key.generation != generation]
        for key in old:
            del self.used[key]
        if old and generation:
            self.use(self.key(template))

    def unclaimed(self):
        return [v for v in self.core.instances() if not v.session_id and v.state in UNCLAIMED and v.key]

    def check_making(self, out):
        """What begins now: it is allowed, and made ahead only if nobody waits."""
        held = [v for v in self.core.instances() if v.instance_id not in self.found | set(self.leaks)]
        if any(isinstance(effect, effects.Clone) for effect in out):
            assert len(held) <= self.policy.max_instances
        unclaimed = self.unclaimed()
        ahead = {v.instance_id for v in unclaimed}
        asks = [effect for effect in out if isinstance(effect, effects.RequestWarm)]
        clones = [e for e in out if isinstance(e, effects.Clone) and e.instance_id in ahead]
        if not asks and not clones:
            return
        assert SessionState.QUEUED not in {v.state for v in self.core.sessions()}, "sessions come first"
        making = [v.key for v in unclaimed if v.state not in READY]
        if asks:
            assert len(held) + len(self.wanted) <= self.policy.max_instances
            assert len(making) + len(self.wanted) <= MAX_MAKING
        for key in [effect.key for effect in asks]:
            assert not self.shutting_down
            assert key not in making, "one of a key at a time"
            assert [wanted for wanted, _ in self.wanted].count(key) == 1
            assert self.changed.get(key.template, key.generation) == key.generation, "an old generation"
            assert self.barred.get(key, 0.0) <= self.now, "too early"
            assert key in self.used, "nobody wants it"
            assert self.fits(), "no memory for it"

    def fits(self):
        """Whether all that is there, and asked for, is within the budget."""
        asked_mib = sum(self.takes_mib(key) for key, _ in self.wanted)
        budget = self.policy.memory_budget_mib
        return budget is None or self.used_mib() + asked_mib <= budget

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
                assert deadline >= self.now
                assert all(deadline < alarm for alarm in self.alarms), "an alarm that is under way already"
                self.alarms.append(deadline)
            case effects.RequestWarm(key=key, paused=paused):
                self.wanted.append((key, paused))
            case effects.TellSession(session_id=name, phase=phase):
                assert name in self.requested
                assert name not in self.ends
                assert self.told.get(name) != phase, "told twice"
                self.told[name] = phase
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
            case effects.Run(session_id=session) if name in self.found:
                assert self.place[name] == session
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

    @rule(target=sessions, template=TEMPLATES, age=st.integers(0, 1))
    def request(self, template, age):
        session, instance = self.name("s"), self.name("i")
        self.requested[session] = instance
        if self.shutting_down:
            self.settle(session, 125, "shutting-down")
        key = self.key(template, age)
        if not self.shutting_down:
            self.notice(key)
        self.use(key)
        expected = self.expected(key, instance)
        self.send(events.SessionRequested(at=self.now, session_id=session, instance_id=instance, key=key))
        assert (session in self.ends) == self.shutting_down
        if expected is not None:
            (view,) = [view for view in self.core.sessions() if view.session_id == session]
            assert view.source == expected[0]
            assert view.instance_id in expected[1]
        return session

    def expected(self, key, fresh):
        """How a session gets an instance, and which may be it; None if it has to wait, or is refused."""
        if self.shutting_down or SessionState.QUEUED in {v.state for v in self.core.sessions()}:
            return None
        mine = [v for v in self.unclaimed() if v.key == key]
        for state in (InstanceState.WARM, InstanceState.PAUSED):
            if names := [v.instance_id for v in mine if v.state is state]:
                return str(state), names
        if mine:
            return "making", [min(mine, key=lambda v: v.instance_id in self.to_pause).instance_id]
        held = [v for v in self.core.instances() if v.state is not InstanceState.LEAKED]
        return ("made", [fresh]) if len(held) < self.policy.max_instances else None

    @rule(session=sessions, status=st.sampled_from([130, 141]))
    def stop(self, session, status):
        if session not in self.ends:
            self.settle(session, status, "stopped", asked=True)
        self.send(events.StopRequested(at=self.now, session_id=session, reason="asked", status=status))

    @precondition(lambda self: self.names % 4 == 0)
    @rule()
    def find(self):
        name = self.name("i")
        self.made.add(name)
        self.found.add(name)
        self.send(events.InstanceFound(at=self.now, instance_id=name, reason="left behind"))

    @rule(template=TEMPLATES, age=st.integers(0, 1), lived=st.sampled_from([0.0, 100.0, 299.0, 2500.0]))
    def find_warm(self, template, age, lived):
        name, key = self.name("i"), self.key(template, age)
        self.made.add(name)
        self.notice(key)
        self.use(key)
        held = [v for v in self.core.instances() if v.instance_id not in self.leaks]
        self.send(events.WarmFound(at=self.now, instance_id=name, key=key, made_at=self.now - lived))
        if isinstance(self.flying[name], effects.Delete):
            self.found.add(name)
        else:
            assert len(held) < self.policy.max_instances
            assert lived < self.policy.max_age_s

    @rule(target=sessions, template=TEMPLATES, age=st.integers(0, 1))
    def find_session(self, template, age):
        session, name = self.name("s"), self.name("i")
        self.made.add(name)
        self.found.add(name)
        self.ran.add(name)
        self.began.add(name)
        self.requested[session] = name
        self.place[name] = session
        if self.shutting_down:
            self.settle(session, 125, "daemon-stopped", asked=True)
        key = self.key(template, age)
        self.send(events.SessionFound(at=self.now, session_id=session, instance_id=name, key=key))
        assert isinstance(self.flying[name], effects.Run)
        return session

    # What is wished of the pool.

    @rule(template=TEMPLATES, age=st.integers(0, 1), size=st.sampled_from([None, 0, 1, 3]))
    def fill(self, template, age, size):
        key = self.key(template, age)
        if not self.shutting_down:
            self.notice(key)
        self.use(key)
        self.barred.clear()
        self.send(events.FillRequested(at=self.now, key=key, size=size))

    @precondition(lambda self: self.names % 4 == 3)  # rarely enough that something lives meanwhile
    @rule(template=TEMPLATES)
    def drain(self, template):
        key = self.key(template)
        self.barred.pop(key, None)
        self.send(events.DrainRequested(at=self.now, key=key))
        assert key not in {v.key for v in self.unclaimed()}
        self.used.pop(key, None)

    @precondition(lambda self: self.names % 8 == 4)
    @rule()
    def drain_all(self):
        self.barred.clear()
        self.send(events.DrainRequested(at=self.now))
        assert self.unclaimed() == []
        self.used.clear()

    @precondition(lambda self: self.names % 4 == 1)
    @rule(template=TEMPLATES, gone=st.sampled_from([False, False, True]))
    def template_changes(self, template, gone):
        self.generations[template] += 1
        generation = "" if gone else self.key(template).generation
        self.turn_over(template, generation)
        self.send(events.TemplateChanged(at=self.now, driver="sim", template=template, generation=generation))

    @precondition(lambda self: self.names % 4 == 2)
    @rule(policy=POLICIES)
    def policy_changes(self, policy):
        self.policy = policy
        self.granted += len(self.core.pools()) * (max(policy.size, 3) + policy.paused + 1)
        self.barred.clear()
        self.send(events.PolicyChanged(at=self.now, policy=policy))
        self.pass_time(self.now)  # what is too old or idle now is due at once

    @rule(
        available_mib=st.sampled_from([None, 100, 300, 900, 3000]),
        taken=st.dictionaries(TEMPLATES, st.integers(50, 1500)),
    )
    def somebody_looks_at_the_memory(self, available_mib, taken):
        kinds = tuple((self.key(template), mib) for template, mib in taken.items())
        ready = self.ready_keys()
        for key, measured_mib in kinds:
            before, figure = self.figures.get(key), max(128, int(1.25 * measured_mib))
            keeps = before is not None and 0.75 * before <= figure <= before
            self.figures[key] = before if keeps else figure
        self.send(events.Measured(at=self.now, available_mib=available_mib, taken=kinds))
        if available_mib is not None and available_mib < self.policy.memory_reserve_mib:
            ready_mib = sum(self.takes_mib(v.key) for v in self.unclaimed() if v.state in READY)
            missing_mib = self.policy.memory_reserve_mib - available_mib
            before_mib = sum(self.takes_mib(key) for key in ready)
            assert ready_mib == 0 or before_mib - ready_mib >= missing_mib, "the host would swap"

    def ready_keys(self):
        return [view.key for view in self.unclaimed() if view.state in READY]

    @rule(template=TEMPLATES)
    def somebody_works_with_a_template(self, template):
        """A session from request to end, and the refills after it. Without this, hardly any refill."""
        self.request(template=template, age=0)
        self.all_goes_well_for_a_while(steps=4)
        self.pass_time(self.now + 0.3)
        self.all_goes_well_for_a_while(steps=4)

    @precondition(lambda self: self.ready_keys() and not self.shutting_down)
    @rule(target=sessions, data=st.data())
    def request_what_is_ready(self, data):
        keys = self.ready_keys()
        key = keys[data.draw(st.integers(0, len(keys) - 1))]
        waiting = [v for v in self.core.sessions() if v.state is SessionState.QUEUED]
        session = self.request(
            template=key.template, age=self.generations[key.template] - int(key.generation)
        )
        (view,) = [view for view in self.core.sessions() if view.session_id == session]
        assert view.source in {"warm", "paused"} or waiting
        return session

    def keys_in_the_making(self):
        return [view.key for view in self.unclaimed() if view.state not in READY]

    @precondition(lambda self: self.keys_in_the_making() and not self.shutting_down)
    @rule(target=sessions, data=st.data(), then=THEN)
    def request_what_is_being_made(self, data, then):
        key = data.draw(st.sampled_from(self.keys_in_the_making()))
        return self.take_over(key.template, self.generations[key.template] - int(key.generation), then)

    @precondition(lambda self: not self.shutting_down)
    @rule(
        target=sessions,
        template=TEMPLATES,
        size=st.sampled_from([0, 1, 2]),
        found=st.booleans(),
        steps=st.integers(0, 3),
        then=THEN,
    )
    def somebody_comes_while_the_pool_makes_one(self, template, size, found, steps, then):
        """Without this, hardly any instance would be taken over before it is ready."""
        for _ in range(3):  # those who wait have their turn first
            self.all_goes_well_for_a_while(steps=4)
            for name in self.running():
                self.done(name)
        self.fill(template=template, age=0, size=size)
        while self.wanted:
            self.the_pools_request_is_answered(first=True, otherwise=False)
        if found:
            self.find_warm(template=template, age=0, lived=100.0)
        for _ in range(steps):
            for view in self.unclaimed():
                if view.state not in READY and view.key.template == template:
                    self.done(view.instance_id)
        return self.take_over(template, 0, then)

    def take_over(self, template, age, then):
        """What follows on a take-over concerns the session alone; `bar` would see an unclaimed instance."""
        session = self.request(template=template, age=age)
        (view,) = [view for view in self.core.sessions() if view.session_id == session]
        if view.source != "making" or then == "nothing":
            return session
        name = view.instance_id
        failures = {pool.key: pool.failures for pool in self.core.pools()}
        if then == "stop":
            self.stop(session, 130)
        elif then == "die":
            self.let_die(name)
        else:
            self.settle(session, 125, "broken")
            self.answer(name, events.EffectFailed(at=self.now, instance_id=name, code="broken", message="m"))
        for pool in self.core.pools():
            assert pool.failures == failures.get(pool.key, 0), "a session's failure counts as the pool's"
        return session

    @precondition(lambda self: self.ready_keys())
    @rule(data=st.data())
    def a_ready_vm_dies(self, data):
        names = [view.instance_id for view in self.unclaimed() if view.state in READY]
        self.let_die(data.draw(st.sampled_from(names)))

    @precondition(lambda self: self.wanted)
    @rule(first=st.booleans(), otherwise=st.booleans())
    def the_pools_request_is_answered(self, first, otherwise):
        key, paused = self.wanted.pop(0 if first else -1)
        paused = paused if first or not otherwise else not paused
        name = self.name("i")
        if paused:
            self.to_pause.add(name)
        self.send(events.WarmRequested(at=self.now, instance_id=name, key=key, paused=paused))

    @rule(template=TEMPLATES)
    def an_answer_that_the_pool_did_not_ask_for_does_nothing(self, template):
        key = self.key(template)
        if key in [wanted for wanted, _ in self.wanted]:
            return
        before = self.core.instances(), self.core.pools()
        assert self.core.handle(events.WarmRequested(at=self.now, instance_id="i-unasked", key=key)) == []
        assert (self.core.instances(), self.core.pools()) == before

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
        assert name in self.flying
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

    @precondition(lambda self: self.flying or self.wanted)
    @rule(steps=st.integers(1, 4))
    def all_goes_well_for_a_while(self, steps):
        """Without this, hardly a session would come as far as its run."""
        for _ in range(steps):
            for name in sorted(self.flying):
                if name in self.flying and not isinstance(self.flying[name], effects.Run):
                    self.done(name)
                    self.the_accounts_agree()
            while self.wanted:
                self.the_pools_request_is_answered(first=True, otherwise=False)
        for name in self.runs():
            self.start_command(name)

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def effect_fails(self, data):
        name = data.draw(st.sampled_from(sorted(self.flying)))
        session = self.session_of(name)
        if session and not isinstance(self.flying[name], effects.Delete):
            self.settle(session, 125, "broken")
        self.bar(name)
        self.answer(name, events.EffectFailed(at=self.now, instance_id=name, code="broken", message="m"))

    @precondition(lambda self: self.runs() and not self.shutting_down)
    @rule(data=st.data())
    def a_guest_is_lost_before_its_command_starts(self, data):
        """A session whose instance came from the pool gets another one, once."""
        name = data.draw(st.sampled_from(self.runs()))
        if name in self.asked:
            return
        session = self.flying[name].session_id
        (view,) = [view for view in self.core.sessions() if view.session_id == session]
        if view.source == "made" or session in self.parted:
            self.settle(session, 125, "guest-failed")
        else:
            self.parted.add(session)
            del self.place[name]
        self.answer(
            name, events.EffectFailed(at=self.now, instance_id=name, code="guest-failed", message="m")
        )
        if session in self.parted and session not in self.settled:
            assert isinstance(self.flying[name], effects.Delete)
            (view,) = [view for view in self.core.sessions() if view.session_id == session]
            assert view.instance_id != name

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
        self.bar(name)
        self.send(events.VmDied(at=self.now, instance_id=name, reason="killed"))

    def bar(self, name):
        """An unclaimed instance comes to nothing: the next one of its key has to wait a second at least."""
        for view in self.unclaimed():
            if view.instance_id == name:
                self.barred[view.key] = self.now + 1.0

    @rule(seconds=st.sampled_from([0.1, 0.3, 1.0, 7.0, 61.0, 210.0, 700.0]))
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
    def the_accounts_agree(self):
        instances = {view.instance_id: view for view in self.core.instances()}
        sessions = {view.session_id: view for view in self.core.sessions()}
        assert set(instances) == self.made - self.deleted, "an instance is forgotten or made up"
        assert set(sessions) == set(self.requested) - set(self.ends), "a session is forgotten or made up"
        for name, view in instances.items():
            assert (name in self.flying) == (view.state not in WITHOUT_EFFECT)
            assert (name in self.asked) == (view.state is InstanceState.ABANDONED)
            if view.state in READY:
                assert not view.session_id, "leased and warm"
                assert name not in self.ran, "warm again"
            if view.state in WITHOUT_EFFECT:
                assert not view.session_id
            if view.session_id:
                assert sessions[view.session_id].instance_id == name
                assert sessions[view.session_id].key == view.key, "another key, or an old generation"
                assert sessions[view.session_id].source
                phase = PHASES.get(view.state, "")
                assert not phase or self.told.get(view.session_id) == phase, "its client knows nothing of it"
        leases = [view.session_id for view in instances.values() if view.session_id]
        assert len(leases) == len(set(leases)), "two instances for one session"
        for name, view in sessions.items():
            if view.state is SessionState.QUEUED:
                assert not view.instance_id
            else:
                assert instances[view.instance_id].session_id == name, "leased twice"

    @invariant()
    def unclaimed_memory_is_within_the_budget(self):
        if self.policy.memory_budget_mib is not None:
            assert self.used_mib() <= self.policy.memory_budget_mib

    @invariant()
    def a_use_makes_others_give_way_for_as_many_as_it_asks_for(self):
        """A session may have the place for which something gave way; that is a use of its own."""
        assert self.displaced <= self.granted

    @invariant()
    def nothing_unclaimed_is_there_without_a_place(self):
        held = [v for v in self.core.instances() if v.state not in LEAVING]
        assert len(held) <= self.policy.max_instances or self.unclaimed() == []

    @invariant()
    def nothing_unclaimed_is_too_old_or_unused_or_of_an_old_generation(self):
        in_use = set(self.in_use().values())
        for view in self.unclaimed():
            assert self.now <= view.made_at + self.policy.max_age_s
            assert self.changed.get(view.key.template, view.key.generation) == view.key.generation
            if view.key not in in_use:
                assert self.now <= self.used[view.key] + self.policy.idle_timeout_s

    @invariant()
    def the_pools_own_books_agree(self):
        views = {view.key: view for view in self.core.pools()}
        for view in self.core.instances():
            assert not view.session_id or view.state not in IN_USE or view.key in views
        for key, view in views.items():
            mine = [v for v in self.unclaimed() if v.key == key]
            ready = [v.state for v in mine if v.state in READY]
            assert view.warm == ready.count(InstanceState.WARM)
            assert view.paused == ready.count(InstanceState.PAUSED)
            asked = [wanted for wanted, _ in self.wanted].count(key)
            assert view.making == len(mine) - len(ready) + asked
            assert view.claimed == list(self.in_use().values()).count(key)
            assert view.wanted or view.warm or view.making or view.paused or view.claimed or key in self.used
        assert {v.key for v in self.unclaimed()} <= views.keys()
        assert self.core.memory.used_mib == self.used_mib()

    @invariant()
    def nobody_waits_for_nothing(self):
        views = self.core.sessions()
        queued = [view for view in views if view.state is SessionState.QUEUED]
        assert queued == [] or self.flying or self.alarms
        if queued:
            assert queued[0].key not in {v.key for v in self.unclaimed()}

    @invariant()
    def whoever_waits_for_another_try_has_an_alarm(self):
        stuck = [v for v in self.core.instances() if v.state in {InstanceState.STUCK, InstanceState.LEAKED}]
        assert not stuck or self.alarms

    def settle_down(self):
        """Let all that is under way come to its end, and what is due within a minute."""
        for _ in range(20 * self.names + 200):
            if self.flying:
                self.done(min(self.flying))
            elif self.wanted:
                self.the_pools_request_is_answered(first=True, otherwise=False)
            elif self.alarms and min(self.alarms) <= self.now + 60.0:
                self.pass_time(min(self.alarms))
            else:
                return
            self.the_accounts_agree()
        raise AssertionError("it never comes to rest")

    def teardown(self):
        if not hasattr(self, "core"):
            return
        self.settle_down()
        assert set(self.ends) == set(self.requested), "a session is forgotten"
        assert self.settled.keys() >= self.ends.keys()
        if not self.shutting_down:
            assert all(view.state in READY for view in self.core.instances())
            self.the_pool_is_as_full_as_may_be()
            self.pass_time(self.now + 3 * self.policy.idle_timeout_s)
            self.settle_down()
            assert not self.core.instances(), "it is kept for nobody"
            assert self.core.pools() == []
            self.shut_down()
        assert self.deleted == self.made, "an instance is left"
        assert self.stops == 1
        assert (self.core.sessions(), self.core.instances()) == ([], [])

    def the_pool_is_as_full_as_may_be(self):
        """At rest, after a look at the memory: nothing starves that has room, or for which others may go."""
        self.send(events.Measured(at=self.now, available_mib=1 << 20))
        self.settle_down()
        budget = self.policy.memory_budget_mib
        full = len(self.core.instances()) >= self.policy.max_instances
        for view in self.core.pools():
            there_is_room = budget is None or self.used_mib() + self.takes_mib(view.key) <= budget
            assert view.warm >= view.wanted or full or not there_is_room, "a demand is forgotten"
            assert view.warm >= view.wanted or full or not view.paused, "a paused one is in the way"
            if view.warm < view.wanted:
                self.nothing_lower_is_in_the_way(view)

    def nothing_lower_is_in_the_way(self, view):
        """What is left of a lower rank would not make enough room, or its own credit is used up."""
        pool = self.core._supply._pools.find(view.key)
        if not pool.credit:
            return
        lower = [
            v for v in self.core.pools() if v.last_used_at is not None and v.last_used_at < view.last_used_at
        ]
        displaceable = sum(self.takes_mib(v.key) * v.warm for v in lower)
        displaceable += sum(self.takes_mib(v.key) * v.paused for v in self.core.pools())
        budget = self.policy.memory_budget_mib
        fits = budget is None or self.used_mib() - displaceable + self.takes_mib(view.key) <= budget
        assert not displaceable or not fits, "something of a lower rank is in the way"


TestWorld = pytest.mark.timeout(600)(World.TestCase)
TestWorld.settings = settings(
    max_examples=1000 if "CHAOS_KILLS" in os.environ else 100,  # a thousand are for `make chaos`
    stateful_step_count=60,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
