"""The life cycle of a session: one run of work.

                 ADMIT                RunStarted            RunDone, EffectFailed, VmDied,
    QUEUED ───────────▶ PREPARING ─────────────▶ RUNNING    StopRequested, ShutdownRequested
      │                    │                        │
      │ StopRequested,     └────────────────────────┴──────▶ ENDING ──────────▶ ENDED
      │ ShutdownRequested, REFUSE                                    RELEASE      ▲
      └───────────────────────────────────────────────────────────────────────────┘

From PREPARING it goes back to QUEUED once (AGAIN), if the instance that it got from the pool turns out to be
lost before the main command runs: nothing of the session has happened yet, and another one may do.

A session of a dead supervisor that runs on begins with RUNNING (SessionFound); one that can't be gone on with
is told by its end alone (SessionLost).

QUEUED has no instance and waits for a place. PREPARING has one, whose main command does not run yet. ENDING
has its outcome and waits until nothing of its instance is left, or until the first try to delete it has
failed: nobody is held up by our trouble, and the instance is not forgotten.

The first outcome stands, with one exception: a session that was asked to stop, and whose main command turns
out to have ended before the request reached it, has that command's exit status.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

import msgspec

from claude_vm.supervisor.core import events
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.statuses import SESSION_FAILED

LOST_GUEST = frozenset({"guest-failed", "shell-failed", "ssh-channel-refused", "ssh-link-lost"})
"""Codes of failures that say that a guest is out of reach, or does not do what guests do."""


class SessionState(StrEnum):
    """Where a session stands. ABSENT: no such session was ever known, or it is long gone."""

    ABSENT = "absent"
    QUEUED = "queued"
    PREPARING = "preparing"
    RUNNING = "running"
    ENDING = "ending"
    ENDED = "ended"


class SessionOrder(StrEnum):
    """What the core itself decides about a session, beside the events that happen to it."""

    ADMIT = "admit"
    REFUSE = "refuse"
    RELEASE = "release"
    AGAIN = "again"


_S = SessionState
_O = SessionOrder

SessionCause = type[events.Event] | SessionOrder
"""What moves a session."""

_OVER: Mapping[SessionCause, SessionState] = {
    events.RunDone: _S.ENDING,
    events.EffectFailed: _S.ENDING,
    events.VmDied: _S.ENDING,
    events.StopRequested: _S.ENDING,
    events.ShutdownRequested: _S.ENDING,
}

MOVES: Mapping[SessionState, Mapping[SessionCause, SessionState]] = MappingProxyType(
    {
        _S.ABSENT: {
            events.SessionRequested: _S.QUEUED,
            events.SessionFound: _S.RUNNING,
            events.SessionLost: _S.ENDED,
        },
        _S.QUEUED: {
            _O.ADMIT: _S.PREPARING,
            _O.REFUSE: _S.ENDED,
            events.StopRequested: _S.ENDED,
            events.ShutdownRequested: _S.ENDED,
        },
        _S.PREPARING: {events.RunStarted: _S.RUNNING, _O.AGAIN: _S.QUEUED, **_OVER},
        _S.RUNNING: {**_OVER},
        _S.ENDING: {
            events.RunDone: _S.ENDING,
            _O.RELEASE: _S.ENDED,
        },
        _S.ENDED: {},
    }
)
"""All transitions."""

HARMLESS: Mapping[tuple[SessionState, type[events.Event]], str] = MappingProxyType(
    {
        (_S.ENDING, events.StopRequested): "its outcome stands; a client may ask twice, or leave meanwhile",
        (_S.ENDED, events.StopRequested): "the request and the end crossed on the way",
    }
)
"""Events that may come late through no fault of their sender, and why. They change nothing."""


class Outcome(msgspec.Struct, frozen=True):
    """How a session ended. `code` and `message` are "" when its main command ended.

    `asked` tells that it was asked to stop, so that the main command's own status may still replace this.
    """

    status: int
    code: str = ""
    message: str = ""
    detail: tuple[str, ...] = ()
    asked: bool = False


UNDECIDED = Outcome(SESSION_FAILED, "undecided")
"""Stands in for the outcome until ENDING; no client ever gets it."""


class SessionLife(msgspec.Struct):
    """One session. Only the core changes it.

    `offered_id` is the id for an instance that would have to be made. `instance_id` is the one it has, or "".
    `since` is the instant at which it came into its state. `source` says how its instance came, see
    `SessionView`. `phase` is what its client was told last of its instance, "" before that. `tried_again`
    tells that it has lost an instance already.
    """

    session_id: str
    key: PoolKey
    offered_id: str
    requested_at: float
    state: SessionState = SessionState.ABSENT
    since: float = 0.0
    instance_id: str = ""
    outcome: Outcome = UNDECIDED
    source: str = ""
    phase: str = ""
    tried_again: bool = False

    @property
    def status(self) -> int | None:
        """Its exit status, once that is settled."""
        return None if self.outcome is UNDECIDED else self.outcome.status

    @property
    def may_try_again(self) -> bool:
        """Whether another instance may do what the one from the pool could not."""
        return (
            self.state is SessionState.PREPARING
            and not self.tried_again
            and self.source in {"warm", "paused", "making"}
        )
