"""What shall be done: the only output of the core.

Instance effects are answered with exactly one `EffectEnded` event each, also when cancelled, and an
instance has at most one in flight. `RequestWarm` is answered too, at once, with `WarmRequested`. `Cancel`,
`WakeAt` and the session notices are not answered.
"""

import msgspec

from claude_vm.supervisor.core.keys import PoolKey


class Effect(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Base of all effects."""


class InstanceEffect(Effect, frozen=True):
    """Base of the effects that are answered."""

    instance_id: str


class Clone(InstanceEffect, frozen=True):
    """Make the instance's disk. Answer: `CloneDone`."""

    key: PoolKey


class Prestart(InstanceEffect, frozen=True):
    """Start the VM's process ahead, paused; `Start` then goes on from there. Answer: `PrestartDone`."""


class Start(InstanceEffect, frozen=True):
    """Restore or boot it. Answer: `StartDone`."""


class Connect(InstanceEffect, frozen=True):
    """Open the SSH connection and let the shells get ready. Answer: `ConnectDone`."""


class Run(InstanceEffect, frozen=True):
    """Run the session's main command to its end. Answer: `RunDone`; `RunStarted` comes before it.

    In a session that was found running it runs already, so there is no `RunStarted`: that was then.
    """

    session_id: str


class Delete(InstanceEffect, frozen=True):
    """Remove everything of it. Answer: `DeleteDone`."""


class RequestWarm(Effect, frozen=True):
    """The pool wants one more instance of a key. Answer at once with `WarmRequested`, a fresh id, and these.

    `paused`: its VM shall only be started ahead. The core asks once and waits for the answer.
    """

    key: PoolKey
    paused: bool


class Cancel(Effect, frozen=True):
    """Cancel the instance's effect in flight; its answer still comes."""

    instance_id: str


class WakeAt(Effect, frozen=True):
    """Send a `Tick` at this instant. A later `WakeAt` does not replace an earlier one."""

    deadline: float


class TellSession(Effect, frozen=True):
    """Tell the session's client where it stands.

    Phases: ``queued``, ``clone``, ``start``, ``connect``, ``run`` (what goes before the main command),
    ``delete``.
    """

    session_id: str
    phase: str


class EndSession(Effect, frozen=True):
    """The session is over, with this exit status: nothing of its instance is left.

    If the first try to delete the instance fails, the session ends nevertheless. `code` and `message` say
    what went wrong when it was not the main command that ended; else both are "". `detail` are the last words
    of what failed, line by line. Codes of the core:
    ``stopped`` (the message is the request's reason), ``vm-died``, ``daemon-stopped``, ``shutting-down``;
    others are those of `EffectFailed`.
    """

    session_id: str
    status: int
    code: str = ""
    message: str = ""
    detail: tuple[str, ...] = ()


class ReportLeak(Effect, frozen=True):
    """An instance can't be deleted, after several tries. People must know. Told once; the tries go on."""

    instance_id: str
    message: str


class StopServing(Effect, frozen=True):
    """After `ShutdownRequested`, once: nothing is left but what `ReportLeak` told, the supervisor may end."""
