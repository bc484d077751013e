"""Who has the room, told as stories: projects that are used in turn, on a host whose memory is simulated.

Time is virtual. Each VM takes what the story says from the host, whatever its configured size is; somebody
looks at the memory every ten seconds, when one is connected, and when one more is about to be made.
"""

import heapq
import itertools

import pytest

from claude_vm.supervisor.core import effects, events
from claude_vm.supervisor.core.core import Core
from claude_vm.supervisor.core.keys import MountKey
from claude_vm.supervisor.core.policy import PoolPolicy
from claude_vm.supervisor.core.pool.memory import FLOOR_MIB, KEPT_KINDS, MARGIN, Memory

LOOK_S = 10.0
SECONDS = {
    effects.Clone: 0.1,
    effects.Prestart: 0.1,
    effects.Start: 0.5,
    effects.Connect: 0.3,
    effects.Delete: 0.1,
}
DONE = {
    effects.Clone: events.CloneDone,
    effects.Prestart: events.PrestartDone,
    effects.Connect: events.ConnectDone,
    effects.Delete: events.DeleteDone,
}


class Town:
    """A host with projects on it.

    `taken` is what each VM takes, in MiB, `others` what all else does. `sources` says how the sessions came
    to their VMs, in order; `made` and `deleted` count VMs that were made ahead, and those nobody ever used.
    """

    def __init__(self, *, total_mib=24_000, others=4_000, vm_mib=300, fails=(), **policy):
        self.core = Core(PoolPolicy(**{"size": 1, "max_instances": 64, **policy}))
        self.total_mib, self.others, self.vm_mib = total_mib, others, vm_mib
        self.fails = set(fails)
        self.now = 0.0
        self.session_s = 2.0
        self.taken = {}
        self.sources = []
        self.made = self.deleted = 0
        self.least_available = total_mib
        self._unused = set()
        self._keys = {}
        self._queue = []
        self._numbers = itertools.count()
        self._at(0.0, self._look)

    @property
    def available_mib(self):
        return self.total_mib - self.others - sum(self.taken.values())

    def _at(self, at, do):
        heapq.heappush(self._queue, (at, next(self._numbers), do))

    def _look(self):
        ready = {}
        for view in self.core.instances():
            if view.state == "warm":
                ready.setdefault(view.key.kind, []).append(self.taken[view.instance_id])
        self.send(
            events.Measured,
            available_mib=self.available_mib,
            taken=tuple((kind, sum(each) // len(each)) for kind, each in ready.items()),
        )
        self._at(self.now + LOOK_S, self._look)

    def send(self, kind, **fields):
        for effect in self.core.handle(kind(at=self.now, **fields)):
            self._take(effect)
        self.least_available = min(self.least_available, self.available_mib)

    def _take(self, effect):
        match effect:
            case effects.RequestWarm(key=key, paused=paused):
                name = f"i{next(self._numbers)}"
                fields = {"instance_id": name, "paused": paused, "available_mib": self.available_mib}
                self._at(self.now, lambda: self.send(events.WarmRequested, key=key, **fields))
            case effects.WakeAt(deadline=deadline):
                self._at(deadline, lambda: self.send(events.Tick))
            case effects.Cancel(instance_id=name):
                self._at(self.now, lambda: self.send(events.EffectCancelled, instance_id=name))
            case effects.InstanceEffect():
                seconds = SECONDS.get(type(effect), self.session_s)
                self._at(self.now + seconds, lambda: self._done(effect))

    def _done(self, effect):
        name, fields = effect.instance_id, {}
        view = next((v for v in self.core.instances() if v.instance_id == name), None)
        if view is None or (
            view.state in {"abandoned", "deleting"} and not isinstance(effect, effects.Delete)
        ):
            return  # its cancellation was told
        match effect:
            case effects.Clone(key=key):
                self._keys[name] = key
                if not view.session_id:
                    self.made += 1
                    self._unused.add(name)
            case effects.Start():
                if self._keys[name].template in self.fails and not view.session_id:
                    self.send(events.EffectFailed, instance_id=name, code="broken", message="m")
                    return
                self.taken[name] = self.vm_mib
                self.send(events.StartDone, instance_id=name, restored=True)
                return
            case effects.Connect():
                self.send(events.Measured, taken=((self._keys[name], self.taken[name]),))
            case effects.Run(session_id=session):
                self.sources.append(next(v for v in self.core.sessions() if v.session_id == session).source)
                self._unused.discard(name)
                self.send(events.RunStarted, instance_id=name, session_id=session)
                fields = {"session_id": session, "status": 0}
                self.send(events.RunDone, instance_id=name, **fields)
                return
            case effects.Delete():
                self.taken.pop(name, None)
                self.deleted += name in self._unused
        self.send(DONE[type(effect)], instance_id=name)

    def pass_time(self, seconds):
        until = self.now + seconds
        while self._queue and self._queue[0][0] <= until:
            self.now, _, do = heapq.heappop(self._queue)
            do()
        self.now = until

    def use(self, key, pause_s=20.0):
        """Run a session of two seconds, and wait."""
        n = next(self._numbers)
        self.send(events.SessionRequested, session_id=f"s{n}", instance_id=f"i{n}", key=key)
        self.pass_time(pause_s)

    def fill(self, key, size=None, pause_s=5.0):
        self.send(events.FillRequested, key=key, size=size)
        self.pass_time(pause_s)

    def ready(self):
        """The names of the templates with something warm, the one that was used last at the end."""
        return [view.key.template for view in self.core.pools() if view.warm]


@pytest.fixture
def big(key_of):
    """Keys with the default size."""
    return lambda name, **fields: key_of(name, memory_mib=8192, **fields)


EIGHT, TEN = "abcdefgh", "abcdefghij"
DEFAULTS = {"memory_budget_mib": 12_052, "memory_reserve_mib": 1205, "max_instances": 31}
AHEAD = {"paused": 1, "prestart_drivers": frozenset({"sim"})}


def test_eight_projects_with_vms_of_8_gb_are_all_ready_on_a_host_with_24_gb(big):
    town = Town(**DEFAULTS, **AHEAD)
    for name in EIGHT * 3:
        town.use(big(name))
    assert town.ready() == list(EIGHT)
    assert town.sources == ["made"] * 8 + ["warm"] * 16
    assert town.deleted == 0


def test_filled_ones_count_as_configured_until_each_is_measured_and_then_as_they_are(big):
    town = Town(**DEFAULTS)
    for name in EIGHT:
        town.fill(big(name), pause_s=0.5)
        view = town.core.pools()[-1]
        assert (view.takes_mib, view.is_measured) == (8192, False)
        town.pass_time(1.0)
        view = town.core.pools()[-1]
        assert (view.takes_mib, view.is_measured) == (375, True)
    assert town.ready() == list(EIGHT)
    assert town.core.memory.used_mib == 8 * 375
    assert town.core.takes_mib(big(EIGHT[0])) == 375
    assert town.core.takes_mib(big("another")) is None


def room_for_eight(how):
    return {"max_instances": 8} if how == "places" else {"memory_budget_mib": 8 * 375}


@pytest.mark.parametrize("how", ["places", "memory"])
def test_of_ten_projects_on_room_for_eight_those_used_last_are_ready(big, how):
    town = Town(**room_for_eight(how))
    town.core.handle(events.Measured(at=0.0, taken=tuple((big(name), 300) for name in TEN)))
    for name in TEN:
        town.use(big(name))
    assert town.ready() == list(TEN[2:])
    assert town.deleted == 2
    for name in "jihgfe" * 3:
        town.use(big(name))
    assert set(town.sources[10:]) == {"warm"}
    assert town.deleted == 2
    town.use(big("a"))
    assert sorted(town.ready()) == sorted("adefghij")


@pytest.mark.parametrize("how", ["places", "memory"])
def test_a_use_costs_others_no_more_than_one_vm_however_the_projects_take_turns(big, how):
    town = Town(**room_for_eight(how), **AHEAD)
    town.core.handle(events.Measured(at=0.0, taken=tuple((big(name), 300) for name in TEN)))
    for uses, name in enumerate(TEN * 5, 1):
        town.use(big(name), pause_s=7.0)
        assert town.deleted <= 2 * uses  # a warm one, and one that was only started ahead
    made, deleted = town.made, town.deleted
    town.pass_time(600.0)
    assert (town.made, town.deleted) == (made, deleted), "it does not come to rest"


@pytest.mark.parametrize("pause_s", [0.3, 1.0, 4.0])
def test_two_projects_that_flap_on_room_for_one_end_with_the_one_that_was_used_last(big, pause_s):
    town = Town(max_instances=3, memory_budget_mib=400)
    town.core.handle(events.Measured(at=0.0, taken=((big("a"), 300), (big("b"), 300))))
    for name in "ab" * 10:
        town.use(big(name), pause_s=pause_s)
    town.pass_time(30.0)
    assert len(town.sources) == 20
    assert town.ready() == ["b"]
    assert town.deleted <= 20
    made = town.made
    town.pass_time(900.0)
    assert town.made == made


def test_a_project_whose_vms_always_fail_costs_another_one_its_vm_once_for_each_use(big):
    town = Town(max_instances=1, fails={"bad"})
    town.use(big("good"))
    assert town.ready() == ["good"]
    for _ in range(3):
        before = town.made
        town.use(big("bad"), pause_s=300.0)
        assert town.ready() == ["good"]
        assert town.made - before <= 4


def test_a_long_session_has_the_next_vm_ready_at_last_at_the_cost_of_others(big):
    town = Town(max_instances=3)
    for name in "abc":
        town.use(big(name))
    town.session_s = 3600.0
    town.use(big("c"), pause_s=20.0)
    assert town.ready() == ["a", "b"]
    town.pass_time(30.0)
    assert town.ready() == ["b", "c"]


def test_a_filled_project_takes_the_only_place_from_the_one_that_was_filled_before(big):
    town = Town(max_instances=1)
    for name in "abab":
        town.fill(big(name))
        assert town.ready() == [name]
    town.use(big("a"))
    assert town.ready() == ["a"]


def test_with_other_mounts_the_only_place_goes_to_the_kind_that_was_used_last(big):
    town = Town(max_instances=1)
    one = big("p", mounts=(MountKey("/p", "/p", writable=True),))
    other = big("p", mounts=(*one.mounts, MountKey("/d", "/d", writable=False)))
    town.fill(one)
    town.use(other)
    assert [view.key for view in town.core.pools() if view.warm] == [other]
    town.fill(one)
    assert [view.key for view in town.core.pools() if view.warm] == [one]
    assert [v.gave_way for v in town.core.pools()] == ["another one needed the room", ""]


def test_a_second_vm_of_the_project_that_was_used_last_comes_before_an_older_projects_first(big):
    town = Town(max_instances=2)
    town.use(big("a"))
    town.fill(big("b"), 2)
    assert [(v.key.template, v.warm) for v in town.core.pools()] == [("a", 0), ("b", 2)]


def test_what_is_only_started_ahead_gives_way_to_what_shall_be_ready_whoever_was_used_last(big):
    town = Town(max_instances=4, **AHEAD)
    for name in "abcd":
        town.use(big(name))
    assert town.ready() == list("abcd")
    assert [v.paused for v in town.core.pools()] == [0, 0, 0, 0]


# What others take, and what VMs grow to.


def test_when_others_take_the_hosts_memory_ready_vms_are_given_up_before_it_is_gone(big):
    town = Town(**DEFAULTS)
    for name in EIGHT:
        town.use(big(name))
    for _ in range(100):
        town.others += 200
        town.pass_time(LOOK_S)
        if town.available_mib < 600:
            break
        assert town.available_mib > 1205 - 300 or not town.ready()
    assert town.ready() == []
    assert town.core.pools()[0].gave_way == "the memory is short"


def test_those_used_longest_ago_go_first_when_memory_is_short_and_only_as_many_as_it_takes(big):
    town = Town(**DEFAULTS)
    for name in EIGHT:
        town.use(big(name))
    town.others += town.available_mib - 700
    town.pass_time(LOOK_S + 1)
    assert town.ready() == list("cdefgh")
    assert town.available_mib == 700 + 2 * 300


def test_what_was_given_up_for_memory_comes_back_only_when_there_is_plenty_again(big):
    town = Town(**DEFAULTS)
    for name in EIGHT:
        town.use(big(name))
    town.others += town.available_mib - 700
    town.pass_time(60.0)
    made = town.made
    for change in (-800, 800) * 20:  # above the reserve, and down to it
        town.others += change
        town.pass_time(LOOK_S)
    assert town.made == made
    assert town.ready() == list("cdefgh")
    town.others -= 4000
    town.pass_time(60.0)
    assert sorted(town.ready()) == sorted(EIGHT)


def test_no_refill_begins_on_a_host_without_memory_and_that_is_no_failure(big):
    town = Town(others=23_000, **DEFAULTS)
    town.use(big("a"), pause_s=120.0)
    assert (town.made, town.sources) == (0, ["made"])
    (view,) = town.core.pools()
    assert (view.failures, view.wanted) == (0, 1)
    town.others = 4_000
    town.pass_time(LOOK_S + 5)
    assert town.ready() == ["a"]


def test_free_memory_is_asked_at_the_last_moment_and_a_refusal_is_no_failure(make_rig, key_of):
    rig = make_rig(size=1, memory_reserve_mib=500)
    rig.fill()
    assert rig.asked == [(key_of(), False)]
    fields = {"key": key_of(), "instance_id": "i1"}
    assert rig.send(events.WarmRequested, **fields, available_mib=1000 + 511) == []
    assert (rig.asked, rig.pool().failures) == ([], 0)
    rig.tick(after=60)
    assert rig.asked == []
    rig.send(events.Measured, available_mib=1000 + 512)
    assert rig.asked == [(key_of(), False)]
    assert rig.send(events.WarmRequested, **fields, available_mib=1000 + 512) == [
        effects.Clone(instance_id="i1", key=key_of())
    ]


def test_ready_vms_that_grow_are_counted_as_they_are_and_the_oldest_go(big):
    town = Town(**{**DEFAULTS, "memory_budget_mib": 4000})
    for name in EIGHT:
        town.use(big(name))
    assert len(town.ready()) == 8
    for _ in range(30):
        for name in town.taken:
            town.taken[name] += 20
        town.pass_time(LOOK_S)
        assert town.core.memory.used_mib <= 4000
    assert town.ready()[-3:] == list("fgh")


# The books alone.


def test_a_figure_rises_at_once_and_falls_only_when_it_is_far_too_high(key_of):
    memory, key = Memory(), key_of("a")
    assert (memory.takes_mib(key), memory.is_measured(key)) == (512, False)
    for measured, takes in ((1, FLOOR_MIB), (200, 250), (240, 300), (190, 300), (170, 212), (1000, 1250)):
        memory.measure(key, measured)
        assert memory.takes_mib(key) == takes, measured
    assert MARGIN > 1


def test_what_is_there_already_counts_by_the_latest_figure(key_of):
    memory, key = Memory(), key_of("a")
    memory.expect(key)
    memory.expect(key_of("b"))
    memory.measure(key, 200)
    assert memory.used_mib == 250 + 512
    memory.offer(key)
    memory.take_out(key, is_ready=True)
    assert memory.used_mib == 512


def test_figures_of_kinds_without_an_instance_are_forgotten_at_last(key_of):
    memory, used = Memory(), key_of("used")
    memory.expect(used)
    memory.measure(used, 200)
    for n in range(2 * KEPT_KINDS):
        memory.measure(key_of(f"k{n}"), 200)
    assert memory.is_measured(used)
    assert memory.is_measured(key_of(f"k{2 * KEPT_KINDS - 1}"))
    assert not memory.is_measured(key_of("k0"))


def test_no_figure_of_a_kind_with_instances_is_forgotten_however_many_there_are(key_of):
    memory, kinds = Memory(), [key_of(f"k{n}") for n in range(KEPT_KINDS + 1)]
    for kind in kinds:
        memory.expect(kind)
        memory.measure(kind, 200)
    assert all(memory.is_measured(kind) for kind in kinds)


def test_mounts_make_no_other_kind_and_another_generation_does(key_of):
    mounts = (MountKey("/d", "/d", writable=False),)
    assert key_of("a", mounts=mounts).kind == key_of("a").kind != key_of("a", generation="2").kind
