"""The life cycle of an instance: one VM that we made, used by one session at most.

             CloneDone          StartDone            ConnectDone        CLAIM          RunStarted
    CLONING ──────────▶ STARTING ───────▶ CONNECTING ─────────▶ WARM ──────▶ LEASED ─────────▶ RUNNING
       │                   │                  │                  │              │                 │
       ├───────────────────┴──────────────────┴──────────────────┴──────────────┴─────────────────┘
       │
       ├─ nothing is in flight any more (EffectFailed, RunDone; WARM: GIVE_UP, VmDied) ─▶ DELETING
       │
       └─ GIVE_UP or VmDied while an effect is in flight ─▶ ABANDONED ── its answer ────▶ DELETING

    An instance that shall only wait, started ahead, goes another way to STARTING:

             PRESTART             PrestartDone         CLAIM
    CLONING ──────────▶ PRESTARTING ───────────▶ PAUSED ────▶ STARTING

    It ends from PRESTARTING as from STARTING, from PAUSED as from WARM.

    One that the pool has in the making may be claimed before it is ready (CLONING, PRESTARTING, STARTING,
    CONNECTING). It stays where it is, its effect goes on, and from then on it is as if made for the session.

               DeleteDone                     EffectFailed           REPORT
    DELETING ─────────────▶ DELETED  DELETING ─────────────▶ STUCK ─────────▶ LEAKED
                                         ▲        RETRY        │      RETRY      │
                                         └─────────────────────┴─────────────────┘

It begins with CLONING (MAKE, WarmRequested). What a dead supervisor left begins with CONNECTING (WarmFound),
with RUNNING (SessionFound) or, if it can't be used on, with DELETING (InstanceFound).

CLONING, PRESTARTING, STARTING, CONNECTING, LEASED, RUNNING, ABANDONED and DELETING have exactly one effect in
flight, the other states have none. An instance that is given up while a driver call still runs is not deleted
under that call's feet: it waits as ABANDONED for the answer (of the cancelled call, or of one that was
quicker), and only then is it deleted.

Nothing leads from LEASED or RUNNING back to WARM: what has run anything is never used again. An instance made
for a session passes through WARM within one event; seen from outside, WARM is never leased.

STUCK and LEAKED wait for another try; LEAKED has been reported to people. Neither is ever forgotten.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

import msgspec

from claude_vm.supervisor.core import effects, events
from claude_vm.supervisor.core.keys import PoolKey


class InstanceState(StrEnum):
    """Where an instance stands. ABSENT: no such instance was ever known, or it is long gone."""

    ABSENT = "absent"
    CLONING = "cloning"
    PRESTARTING = "prestarting"
    PAUSED = "paused"
    STARTING = "starting"
    CONNECTING = "connecting"
    WARM = "warm"
    LEASED = "leased"
    RUNNING = "running"
    ABANDONED = "abandoned"
    DELETING = "deleting"
    STUCK = "stuck"
    LEAKED = "leaked"
    DELETED = "deleted"


class InstanceOrder(StrEnum):
    """What the core itself decides about an instance, beside the events that happen to it."""

    MAKE = "make"
    PRESTART = "prestart"
    CLAIM = "claim"
    GIVE_UP = "give-up"
    REPORT = "report"
    RETRY = "retry"


_S = InstanceState
_O = InstanceOrder

InstanceCause = type[events.Event] | InstanceOrder
"""What moves an instance."""

_BROKEN_OFF: Mapping[InstanceCause, InstanceState] = {
    events.EffectFailed: _S.DELETING,
    events.VmDied: _S.ABANDONED,
    _O.GIVE_UP: _S.ABANDONED,
}
_NOT_NEEDED: Mapping[InstanceCause, InstanceState] = {events.VmDied: _S.DELETING, _O.GIVE_UP: _S.DELETING}
_ANSWERED: Mapping[InstanceCause, InstanceState] = {
    events.CloneDone: _S.DELETING,
    events.PrestartDone: _S.DELETING,
    events.StartDone: _S.DELETING,
    events.ConnectDone: _S.DELETING,
    events.RunDone: _S.DELETING,
    events.EffectFailed: _S.DELETING,
    events.EffectCancelled: _S.DELETING,
}

MOVES: Mapping[InstanceState, Mapping[InstanceCause, InstanceState]] = MappingProxyType(
    {
        _S.ABSENT: {
            _O.MAKE: _S.CLONING,
            events.WarmRequested: _S.CLONING,
            events.WarmFound: _S.CONNECTING,
            events.SessionFound: _S.RUNNING,
            events.InstanceFound: _S.DELETING,
        },
        _S.CLONING: {
            _O.CLAIM: _S.CLONING,
            events.CloneDone: _S.STARTING,
            _O.PRESTART: _S.PRESTARTING,
            **_BROKEN_OFF,
        },
        _S.PRESTARTING: {_O.CLAIM: _S.PRESTARTING, events.PrestartDone: _S.PAUSED, **_BROKEN_OFF},
        _S.PAUSED: {_O.CLAIM: _S.STARTING, **_NOT_NEEDED},
        _S.STARTING: {_O.CLAIM: _S.STARTING, events.StartDone: _S.CONNECTING, **_BROKEN_OFF},
        _S.CONNECTING: {_O.CLAIM: _S.CONNECTING, events.ConnectDone: _S.WARM, **_BROKEN_OFF},
        _S.WARM: {_O.CLAIM: _S.LEASED, **_NOT_NEEDED},
        _S.LEASED: {events.RunStarted: _S.RUNNING, events.RunDone: _S.DELETING, **_BROKEN_OFF},
        _S.RUNNING: {events.RunDone: _S.DELETING, **_BROKEN_OFF},
        _S.ABANDONED: _ANSWERED,
        _S.DELETING: {events.DeleteDone: _S.DELETED, events.EffectFailed: _S.STUCK},
        _S.STUCK: {_O.REPORT: _S.LEAKED, _O.RETRY: _S.DELETING},
        _S.LEAKED: {_O.RETRY: _S.DELETING},
        _S.DELETED: {},
    }
)
"""All transitions.

PRESTART stands for the CloneDone of an instance that shall be paused. A CLAIM that leads back to the same
state begins nothing: the effect in flight goes on. ABANDONED takes only the answers of its effect in flight,
see `fits`.
"""

HARMLESS: Mapping[tuple[InstanceState, type[events.Event]], str] = MappingProxyType(
    {
        (_S.ABANDONED, events.RunStarted): "the command had started when the cancellation was on its way",
        (_S.ABANDONED, events.VmDied): "it is given up already; the driver may notice the end that we cause",
        (_S.DELETING, events.VmDied): "deleting ends the VM, and whoever watches it may tell",
        (_S.STUCK, events.VmDied): "half a deletion may have ended the VM",
        (_S.LEAKED, events.VmDied): "somebody ended by hand what we could not delete",
        (_S.DELETED, events.VmDied): "the watcher's news came after the answer of the deletion",
    }
)
"""Events that may come late through no fault of their sender, and why. They change nothing."""

PHASES: Mapping[InstanceState, str] = MappingProxyType(
    {
        _S.CLONING: "clone",
        _S.PRESTARTING: "start",
        _S.STARTING: "start",
        _S.CONNECTING: "connect",
        _S.LEASED: "run",
        _S.DELETING: "delete",
    }
)
"""What the session of an instance is told when the instance comes into a state, or is claimed in it."""

_LATE: Mapping[type[effects.InstanceEffect], frozenset[type[events.Event]]] = MappingProxyType(
    {
        effects.Clone: frozenset({events.CloneDone}),
        effects.Prestart: frozenset({events.PrestartDone}),
        effects.Start: frozenset({events.StartDone}),
        effects.Connect: frozenset({events.ConnectDone}),
        effects.Run: frozenset({events.RunDone, events.RunStarted}),
    }
)
_EFFECTS: Mapping[InstanceState, type[effects.InstanceEffect]] = MappingProxyType(
    {
        _S.CLONING: effects.Clone,
        _S.PRESTARTING: effects.Prestart,
        _S.STARTING: effects.Start,
        _S.CONNECTING: effects.Connect,
        _S.LEASED: effects.Run,
        _S.RUNNING: effects.Run,
        _S.DELETING: effects.Delete,
    }
)
IN_FLIGHT: Mapping[InstanceState, frozenset[type[effects.InstanceEffect]]] = MappingProxyType(
    {_S.ABANDONED: frozenset(_LATE), **{state: frozenset({effect}) for state, effect in _EFFECTS.items()}}
)
"""Which effects may be in flight in a state; in the others none is."""

_WHATEVER_WAS_IN_FLIGHT = frozenset({events.EffectFailed, events.EffectCancelled, events.VmDied})

UNCLAIMED = frozenset({_S.CLONING, _S.PRESTARTING, _S.PAUSED, _S.STARTING, _S.CONNECTING, _S.WARM})
"""States in which an instance without a session belongs to the pool."""

READY = frozenset({_S.PAUSED, _S.WARM})
"""States of UNCLAIMED in which an instance waits for a session, and has nothing in flight."""

IN_USE = UNCLAIMED | {_S.LEASED, _S.RUNNING}
"""States in which an instance with a session is of use to it."""

UNKNOWN_KEY = PoolKey(driver="", template="", generation="", cpus=0, memory_mib=0, disk_gib=0)
"""The key of an instance that a dead supervisor left: it is only deleted."""


class InstanceLife(msgspec.Struct):
    """One instance. Only the core changes it.

    `session_id` is the session that it was made for or that claimed it, until that session has its exit
    status; "" is no session. `since` is the instant at which it came into its state. `in_flight` is its
    effect that awaits an answer. `failed_deletions` counts. `made_at` is the instant at which its making
    began, None if that is unknown. `to_pause` tells that it shall only be started ahead, while it is
    unclaimed.
    """

    instance_id: str
    key: PoolKey = UNKNOWN_KEY
    session_id: str = ""
    state: InstanceState = InstanceState.ABSENT
    since: float = 0.0
    in_flight: type[effects.InstanceEffect] | None = None
    failed_deletions: int = 0
    made_at: float | None = None
    to_pause: bool = False


def fits(instance: InstanceLife, event: events.InstanceEvent) -> bool:
    """Tell whether an event is about what the instance is really doing, beyond what its state says.

    A run's news must name the session that leases the instance. The late answer to an abandoned instance must
    be the answer to its effect in flight.
    """
    if isinstance(event, events.RunStarted | events.RunDone) and event.session_id != instance.session_id:
        return False
    if instance.state is not InstanceState.ABANDONED or instance.in_flight is None:
        return True
    kind = type(event)
    return kind in _WHATEVER_WAS_IN_FLIGHT or kind in _LATE[instance.in_flight]


def first_effect(instance: InstanceLife) -> effects.InstanceEffect | None:
    """Return the effect with which an instance's state begins, if it begins with one of its own."""
    name, kind = instance.instance_id, _EFFECTS.get(instance.state)
    if kind is effects.Clone:
        return effects.Clone(instance_id=name, key=instance.key)
    if kind is effects.Run:  # RUNNING goes on with that of LEASED, unless it was found
        return (
            effects.Run(instance_id=name, session_id=instance.session_id) if not instance.in_flight else None
        )
    return None if kind is None else kind(instance_id=name)
