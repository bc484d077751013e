"""A core with the words of a test around it."""

from collections import OrderedDict, deque

import msgspec
import pytest

from claude_vm.supervisor.core import effects, events
from claude_vm.supervisor.core.core import Core
from claude_vm.supervisor.core.instance import InstanceState
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.core.policy import PoolPolicy


@pytest.fixture(autouse=True)
def validated(request, monkeypatch):
    """All cores of all tests are validated after each event, also a refused one, unless time is measured."""
    if request.node.get_closest_marker("timed") is None:
        handle = Core.handle

        def handle_and_validate(core, event):
            try:
                return handle(core, event)
            finally:
                core.validate()

        monkeypatch.setattr(Core, "handle", handle_and_validate)


def pool_key(name="t", generation="1", memory_mib=512, mounts=()):
    fields = {"generation": generation, "memory_mib": memory_mib, "mounts": mounts}
    return PoolKey(driver="sim", template=name, cpus=2, disk_gib=4, **fields)


def freeze(thing):
    """All that a thing consists of, as one comparable value."""
    match thing:
        case msgspec.Struct():
            fields = thing.__struct_fields__
            return type(thing).__name__, tuple((name, freeze(getattr(thing, name))) for name in fields)
        case OrderedDict() | dict():
            return tuple((key, freeze(value)) for key, value in thing.items())
        case list() | tuple() | deque():
            return tuple(freeze(part) for part in thing)
        case set() | frozenset():
            return frozenset(thing)
        case _ if hasattr(thing, "__dict__") and not isinstance(thing, type | str):
            return type(thing).__name__, freeze(vars(thing))
        case _:
            return thing


class Rig:
    """A core under test. Time stands still unless a test moves `now`.

    `alarms` are the instants of all `WakeAt`, `asked` the keys and flags of each `RequestWarm` since it was
    last looked at; nobody answers those but the test.
    """

    def __init__(self, policy=None):
        self.core = Core(policy)
        self.now = 100.0
        self.log = []
        self.alarms = []
        self._asked = []
        self._hidden = effects.TellSession
        if policy is not None and (policy.size or policy.paused):
            self._hidden |= effects.WakeAt | effects.RequestWarm

    @property
    def is_empty(self):
        return not self.core.sessions() and not self.core.instances()

    def send(self, kind, **fields):
        """Give the core an event; return the effects without the notices of phases.

        Where the policy keeps something warm, they are also without the alarms and the requests to make more.
        """
        event = kind(at=self.now, **fields)
        self.log.append(event)
        out = self.core.handle(event)
        self.alarms += [e.deadline for e in out if isinstance(e, effects.WakeAt)]
        self._asked += [(e.key, e.paused) for e in out if isinstance(e, effects.RequestWarm)]
        return [e for e in out if not isinstance(e, self._hidden)]

    @property
    def asked(self):
        """What the pool has asked for since the last look."""
        asked, self._asked = self._asked, []
        return asked

    def send_for_phases(self, kind, **fields):
        """Give the core an event; return only the phases that sessions are told."""
        told = self.core.handle(kind(at=self.now, **fields))
        return [(e.session_id, e.phase) for e in told if isinstance(e, effects.TellSession)]

    def request(self, n=1, key=None):
        fields = {"session_id": f"s{n}", "instance_id": f"i{n}", "key": key or pool_key()}
        return self.send(events.SessionRequested, **fields)

    def fill(self, size=None, key=None):
        return self.send(events.FillRequested, key=key or pool_key(), size=size)

    def drain(self, key=None):
        return self.send(events.DrainRequested, key=key)

    def warm(self, n=1, key=None, *, paused=False):
        return self.send(events.WarmRequested, instance_id=f"i{n}", key=key or pool_key(), paused=paused)

    def demand(self, n=1, key=None, size=None):
        """Have an instance made ahead, as far as its clone."""
        self.fill(size, key)
        return self.warm(n, key)

    def make_warm(self, n=1, key=None, size=None):
        self.demand(n, key, size)
        return self.connect(n)

    def make_paused(self, n=1, key=None):
        self.fill(None, key)
        self.warm(n, key, paused=True)
        self.cloned(n)
        return self.prestarted(n)

    def prestarted(self, n=1):
        return self.send(events.PrestartDone, instance_id=f"i{n}")

    def warm_found(self, n=1, key=None, made_at=None):
        fields = {"instance_id": f"i{n}", "key": key or pool_key()}
        return self.send(events.WarmFound, made_at=self.now if made_at is None else made_at, **fields)

    def session_found(self, n=1, key=None, instance=None):
        fields = {"session_id": f"s{n}", "instance_id": f"i{instance or n}", "key": key or pool_key()}
        return self.send(events.SessionFound, **fields)

    def session_lost(self, n=1):
        return self.send(
            events.SessionLost, session_id=f"s{n}", code="session-lost", message="its VM is gone"
        )

    def change(self, generation, name="t", sizes=None):
        return self.send(
            events.TemplateChanged, driver="sim", template=name, generation=generation, sizes=sizes
        )

    def obey(self, **policy):
        return self.send(events.PolicyChanged, policy=PoolPolicy(**policy))

    def cloned(self, n=1):
        return self.send(events.CloneDone, instance_id=f"i{n}")

    def started(self, n=1):
        return self.send(events.StartDone, instance_id=f"i{n}", restored=True)

    def connected(self, n=1):
        return self.send(events.ConnectDone, instance_id=f"i{n}")

    def connect(self, n=1):
        self.cloned(n)
        self.started(n)
        return self.connected(n)

    def run_started(self, n=1, session=None):
        return self.send(events.RunStarted, instance_id=f"i{n}", session_id=f"s{session or n}")

    def run(self, n=1):
        self.request(n)
        self.connect(n)
        return self.run_started(n)

    def run_done(self, n=1, status=0, session=None):
        fields = {"instance_id": f"i{n}", "session_id": f"s{session or n}", "status": status}
        return self.send(events.RunDone, **fields)

    def deleted(self, n=1):
        return self.send(events.DeleteDone, instance_id=f"i{n}")

    def failed(self, n=1, code="boom", message="it broke"):
        return self.send(events.EffectFailed, instance_id=f"i{n}", code=code, message=message)

    def cancelled(self, n=1):
        return self.send(events.EffectCancelled, instance_id=f"i{n}")

    def died(self, n=1, reason="killed by signal 9"):
        return self.send(events.VmDied, instance_id=f"i{n}", reason=reason)

    def stop(self, n=1, status=130, reason="interrupted"):
        return self.send(events.StopRequested, session_id=f"s{n}", reason=reason, status=status)

    def found(self, n=1):
        return self.send(events.InstanceFound, instance_id=f"i{n}", reason="left behind")

    def shut_down(self):
        return self.send(events.ShutdownRequested)

    def tick(self, *, after):
        self.now += after
        return self.send(events.Tick)

    def instance_state(self, n=1):
        """The state as listed; once it is gone, as told by the last step of its story."""
        for view in self.core.instances():
            if view.instance_id == f"i{n}":
                return view.state
        steps = self.core.instance_story(f"i{n}").steps
        return InstanceState(steps[-1].after) if steps else InstanceState.ABSENT

    def session_state(self, n=1):
        for view in self.core.sessions():
            if view.session_id == f"s{n}":
                return view.state
        steps = self.core.session_story(f"s{n}").steps
        return steps[-1].after if steps else "absent"

    def snapshot(self):
        return freeze(self.core)

    def pool(self, key=None):
        """What the pool has of a key, or None."""
        return next((view for view in self.core.pools() if view.key == (key or pool_key())), None)


@pytest.fixture
def rig():
    """A core without a warm pool, with room for eight instances."""
    return Rig()


@pytest.fixture
def make_rig():
    """Make a core with a policy of its own."""

    def make(**policy):
        return Rig(PoolPolicy(**policy))

    return make


@pytest.fixture
def key_of():
    """Make a pool key from a name."""
    return pool_key


@pytest.fixture
def ended():
    """The expected end of a session."""

    def make(n=1, status=0, code="", message=""):
        return effects.EndSession(session_id=f"s{n}", status=status, code=code, message=message)

    return make
