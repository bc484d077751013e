"""What happened: the only input of the core.

An event is a fact with the instant at which the supervisor learned it (`at`: seconds of the supervisor's
monotonic clock). The core never asks for the time. Ids come with the events that introduce them, so the core
needs no randomness of its own.
"""

import msgspec

from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.core.policy import PoolPolicy


class Event(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Base of all events."""

    at: float


class SessionRequested(Event, frozen=True):
    """Somebody wants to run something. `instance_id` is a fresh id, used if an instance must be made.

    The key's generation is the one on disk when the request was made, so a later one than any that was heard
    of before is news like `TemplateChanged`: somebody else has built the template again. An earlier one comes
    from a request that crossed a build; its session has that generation, and the pool does not.

    Generations compare as text: of two of a template, the later one is the greater one.
    """

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
    """The answer to `RequestWarm`, posted at once: the same key, and a fresh id for the instance.

    `paused` as in the request. Without effect, and the id stays unused, if the pool asked for nothing, or has
    no need or no room any more, or sessions wait. `available_mib` as in `Measured`, at this very moment.
    """

    instance_id: str
    key: PoolKey
    paused: bool = False
    available_mib: int | None = None


class Measured(Event, frozen=True):
    """Somebody has looked at the memory.

    `available_mib` is what programs of the host can get without swapping; None: not looked at. `taken` has
    kinds of instances (a key; its mounts don't count) with what a ready one takes, in MiB, on average.
    """

    available_mib: int | None = None
    taken: tuple[tuple[PoolKey, int], ...] = ()


class FillRequested(Event, frozen=True):
    """Somebody wants this many warm instances of a key, now: neither the delay nor a back-off counts.

    `size` of None is the policy's. The demand lasts as long as a session's (`PoolPolicy.idle_timeout_s` after
    the last use, which this is). It gives nothing up: what is there above `size` is only not replaced. A
    later generation is news, as with `SessionRequested`.
    """

    key: PoolKey
    size: int | None = None


class DrainRequested(Event, frozen=True):
    """Give up the unclaimed instances of a key, or of all (None), also those being made.

    The key is not wanted any more, until the next session asks for it. Sessions go on.
    """

    key: PoolKey | None = None


class TemplateChanged(Event, frozen=True):
    """A template has a new generation, or none any more (""): it was built again, or deleted.

    Unclaimed instances of other generations are given up; demand for their keys goes over to the new one. It
    holds whatever it is, even one that is not later, until a later one is heard of. Sessions go on.

    `sizes` are the new template's own processors, MiB of memory and GiB of disk: who asks for nothing else
    gets those from now on, so that demand for others ends. None where they are not known.
    """

    driver: str
    template: str
    generation: str
    sizes: tuple[int, int, int] | None = None


class PolicyChanged(Event, frozen=True):
    """The pool's settings are different from now on. The same ones again do nothing.

    Unclaimed instances that the new policy has no room for are given up; sessions go on.
    """

    policy: PoolPolicy


class WarmFound(Event, frozen=True):
    """At start: a warm instance that a dead supervisor left, fit for use. Its key is wanted from now on.

    `made_at` is the instant at which it was made, by the same clock as `at`. It is connected to again (effect
    `Connect`), or deleted if the policy has no place for it. Its generation is the one on disk: a later one
    is news, as with `SessionRequested`.
    """

    instance_id: str
    key: PoolKey
    made_at: float


class SessionFound(Event, frozen=True):
    """At start: a session of a dead supervisor whose main command had started. It runs on."""

    session_id: str
    instance_id: str
    key: PoolKey


class SessionLost(Event, frozen=True):
    """At start: a session of a dead supervisor that can't be gone on with. Its main command had started.

    `code` and `message` say why. If its instance is there, an `InstanceFound` tells of that.
    """

    session_id: str
    code: str
    message: str


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


class PrestartDone(EffectEnded, frozen=True):
    """The VM's process is there, paused, and waits for `Start`."""


class StartDone(EffectEnded, frozen=True):
    """The guest runs and has its identity. `restored` tells a RAM clone from a boot."""

    restored: bool


class ConnectDone(EffectEnded, frozen=True):
    """The supervisor's SSH connection to the guest is open, and its shells wait."""


class RunDone(EffectEnded, frozen=True):
    """The main command ended. `status` is the exit status as a shell would say it (128+n for signal n)."""

    session_id: str
    status: int


class DeleteDone(EffectEnded, frozen=True):
    """Nothing of the instance is left."""


class EffectFailed(EffectEnded, frozen=True):
    """The effect in flight failed. `code` is stable, `message` is one line for people.

    `detail` are the last words of what failed, line by line.
    """

    code: str
    message: str
    detail: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """All of it in one line."""
        return ": ".join(filter(None, (self.code, self.message, "; ".join(self.detail))))


class EffectCancelled(EffectEnded, frozen=True):
    """The effect in flight was cancelled, as asked by `Cancel`."""


class RunStarted(InstanceEvent, frozen=True):
    """The main command runs. Not an answer: the `Run` effect goes on."""

    session_id: str


class VmDied(InstanceEvent, frozen=True):
    """The VM's process ended and nobody asked it to; or the connection to an unclaimed VM was lost."""

    reason: str


class Tick(Event, frozen=True):
    """An instant for which the core asked with `WakeAt` has come."""
