"""What happened: the only input of the core.

An event is a fact with the instant at which the supervisor learned it (`at`: seconds of the supervisor's
monotonic clock). The core never asks for the time. Ids come with the events that introduce them, so the core
needs no randomness of its own.
"""

import msgspec

from claude_vm.supervisor.core.keys import PoolKey


class Event(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Base of all events."""

    at: float


class SessionRequested(Event, frozen=True):
    """A client wants to run something. `instance_id` is a fresh id, used if an instance must be made."""

    session_id: str
    instance_id: str
    key: PoolKey


class StopRequested(Event, frozen=True):
    """A session shall end: its client went away, a user said so, or the supervisor closes.

    `status` is the exit status that the session then has, unless its main command ended first.
    """

    session_id: str
    reason: str
    status: int


class WarmRequested(Event, frozen=True):
    """The pool may make one more instance of this key, ahead of any session; `instance_id` is a fresh id.

    Without effect, and the id stays unused, while the policy has no room for it or sessions wait.
    """

    instance_id: str
    key: PoolKey


class InstanceFound(Event, frozen=True):
    """At start: an instance that a dead supervisor left. `reason` says why it can't be used on."""

    instance_id: str
    reason: str


class ShutdownRequested(Event, frozen=True):
    """The supervisor shall end: every session is stopped, every instance deleted."""


class InstanceEvent(Event, frozen=True):
    """Something about one instance."""

    instance_id: str


class EffectEnded(InstanceEvent, frozen=True):
    """The one answer to an instance's effect in flight: done, failed or cancelled."""


class CloneDone(EffectEnded, frozen=True):
    """The disk is there."""


class StartDone(EffectEnded, frozen=True):
    """The guest runs and has its identity. `restored` tells a RAM clone from a boot."""

    restored: bool


class ConnectDone(EffectEnded, frozen=True):
    """The supervisor's SSH connection to the guest is open."""


class RunDone(EffectEnded, frozen=True):
    """The main command ended. `status` is the exit status as a shell would say it (128+n for signal n)."""

    session_id: str
    status: int


class DeleteDone(EffectEnded, frozen=True):
    """Nothing of the instance is left."""


class EffectFailed(EffectEnded, frozen=True):
    """The effect in flight failed. `code` is stable, `message` is for people."""

    code: str
    message: str


class EffectCancelled(EffectEnded, frozen=True):
    """The effect in flight was cancelled, as asked by `Cancel`."""


class RunStarted(InstanceEvent, frozen=True):
    """The main command runs. Not an answer: the `Run` effect goes on."""

    session_id: str


class VmDied(InstanceEvent, frozen=True):
    """The VM's process ended and nobody asked it to."""

    reason: str


class Tick(Event, frozen=True):
    """An instant for which the core asked with `WakeAt` has come."""
