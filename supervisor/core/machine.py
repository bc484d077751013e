"""The core: one `handle`, which takes an event and returns what shall be done.

An event is checked whole before anything changes, and what follows the check can't refuse: an event is taken
completely or not at all. What then happens to an instance follows from its table (`instance.MOVES`) and from
what each state begins with (`_begin`); the session's outcome is settled just before. At the end, those who
wait are served.

No event costs more because there are more instances or sessions. The one exception is `ShutdownRequested`,
which is for all of them.
"""

from collections.abc import Sequence
from typing import NamedTuple

from claude_vm.supervisor.core import effects, events
from claude_vm.supervisor.core.effects import Effect
from claude_vm.supervisor.core.errors import InvalidTransition
from claude_vm.supervisor.core.instance import HARMLESS as HARMLESS_TO_INSTANCES
from claude_vm.supervisor.core.instance import MOVES as INSTANCE_MOVES
from claude_vm.supervisor.core.instance import (
    PHASES,
    Instance,
    InstanceCause,
    InstanceOrder,
    InstanceState,
    first_effect,
    fits,
)
from claude_vm.supervisor.core.pool import Assign, Pool, PoolPolicy
from claude_vm.supervisor.core.registry import Registry
from claude_vm.supervisor.core.retries import LEAK_AFTER, Retries, delay_s
from claude_vm.supervisor.core.session import (
    FAILED,
    Outcome,
    Session,
    SessionCause,
    SessionOrder,
    SessionState,
)
from claude_vm.supervisor.core.session import HARMLESS as HARMLESS_TO_SESSIONS
from claude_vm.supervisor.core.session import MOVES as SESSION_MOVES
from claude_vm.supervisor.core.story import Step, Story
from claude_vm.supervisor.core.views import InstanceView, PoolView, SessionView, view_instance, view_session

_UNCLAIMED_STATES = frozenset(
    {InstanceState.CLONING, InstanceState.STARTING, InstanceState.CONNECTING, InstanceState.WARM}
)


class _Turn(NamedTuple):
    """The handling of one event: the event, and what shall be done because of it, so far."""

    event: events.Event
    out: list[Effect]


class Core:
    """All sessions and instances of one supervisor. Not for several threads."""

    def __init__(self, policy: PoolPolicy | None = None) -> None:
        self._pool = Pool(policy or PoolPolicy())
        self._sessions: Registry[Session, SessionState] = Registry(
            absent=SessionState.ABSENT, ended=SessionState.ENDED
        )
        self._instances: Registry[Instance, InstanceState] = Registry(
            absent=InstanceState.ABSENT, ended=InstanceState.DELETED
        )
        self._offered: set[str] = set()
        self._counts = dict.fromkeys(InstanceState, 0)
        self._retries = Retries()
        self._stopping = False
        self._stop_told = False

    def handle(self, event: events.Event) -> list[Effect]:
        """Take an event; return what shall be done because of it, in this order.

        Raises:
            InvalidTransition: The event does not fit; nothing has changed.
            TypeError: It is none of the events of `claude_vm.supervisor.core.events`.
        """
        turn = _Turn(event, [])
        match event:
            case events.EffectEnded() | events.RunStarted() | events.VmDied():
                self._advance(event, turn)
            case events.SessionRequested():
                self._request_session(event, turn)
            case events.StopRequested():
                self._stop_session(event, turn)
            case events.Tick():
                self._retry_due(turn)
            case events.WarmRequested():
                self._make_warm(event, turn)
            case events.InstanceFound():
                self._check_fresh(event.instance_id, event)
                self._add_instance(Instance(event.instance_id), type(event), turn, event.reason)
            case events.ShutdownRequested():
                self._shut_down(turn)
            case _:
                raise TypeError(f"no event of the core: {event!r}")
        self._serve_queue(turn)
        if (deadline := self._retries.wake()) is not None:
            turn.out.append(effects.WakeAt(deadline=deadline))
        if self._stopping and not self._stop_told and self._nothing_left:
            self._stop_told = True
            turn.out.append(effects.StopServing())
        return turn.out

    def sessions(self) -> Sequence[SessionView]:
        """Return the sessions that have not ended, in the order of their requests."""
        return [view_session(session) for session in self._sessions.all()]

    def instances(self) -> Sequence[InstanceView]:
        """Return the instances of which something may be left, oldest first."""
        return [view_instance(instance) for instance in self._instances.all()]

    def pools(self) -> Sequence[PoolView]:
        """Return what there is of each key that is wanted or in use, least recently used first."""
        return []

    def session_story(self, session_id: str) -> Story:
        """Return what happened to a session, as far as it is remembered."""
        return self._sessions.story(session_id)

    def instance_story(self, instance_id: str) -> Story:
        """Return what happened to an instance, as far as it is remembered."""
        return self._instances.story(instance_id)

    @property
    def is_empty(self) -> bool:
        """Whether there is no session and no instance at all."""
        return not self._sessions and not self._instances

    @property
    def is_stopping(self) -> bool:
        """Whether `ShutdownRequested` has come."""
        return self._stopping

    # What each event does: first the check, then the change.

    def _advance(self, event: events.EffectEnded | events.RunStarted | events.VmDied, turn: _Turn) -> None:
        instance = self._instances.find(event.instance_id)
        state = self._instances.state(event.instance_id)
        moves = type(event) in INSTANCE_MOVES[state]
        if not moves and (state, type(event)) not in HARMLESS_TO_INSTANCES:
            raise self._instances.unfit(event.instance_id, event)
        if instance is None:
            return
        if not fits(instance, event):
            raise self._instances.unfit(event.instance_id, event)
        if moves:
            note = self._settle(instance, event)
            self._move_instance(instance, type(event), turn, note)

    def _request_session(self, event: events.SessionRequested, turn: _Turn) -> None:
        state = self._sessions.state(event.session_id)
        if state is not SessionState.ABSENT:
            raise self._sessions.unfit(event.session_id, event)
        self._check_fresh(event.instance_id, event)
        session = Session(event.session_id, event.key, offered_id=event.instance_id, requested_at=event.at)
        self._sessions.add(session.session_id, session)
        self._move_session(session, type(event), event.at)
        if self._stopping:
            session.outcome = Outcome(FAILED, "shutting-down", "the supervisor is shutting down")
            self._end_session(session, SessionOrder.REFUSE, turn)
            return
        self._offered.add(session.offered_id)
        self._pool.enqueue(session.session_id, session.key)
        self._serve_queue(turn)
        if session.state is SessionState.QUEUED:
            turn.out.append(effects.TellSession(session_id=session.session_id, phase="queued"))

    def _stop_session(self, event: events.StopRequested, turn: _Turn) -> None:
        state = self._sessions.state(event.session_id)
        if type(event) in SESSION_MOVES[state]:
            outcome = Outcome(event.status, "stopped", event.reason, asked=True)
            self._stop(self._sessions[event.session_id], outcome, turn)
        elif (state, type(event)) not in HARMLESS_TO_SESSIONS:
            raise self._sessions.unfit(event.session_id, event)

    def _retry_due(self, turn: _Turn) -> None:
        for at, instance_id in self._retries.take_due(turn.event.at):
            instance = self._instances.find(instance_id)
            if instance is not None and instance.retry_at == at:
                self._move_instance(instance, InstanceOrder.RETRY, turn)

    def _make_warm(self, event: events.WarmRequested, turn: _Turn) -> None:
        self._check_fresh(event.instance_id, event)
        if not self._stopping and self._pool.wants(event.key, held=self._held):
            self._pool.expect(event.key)
            self._add_instance(Instance(event.instance_id, event.key), type(event), turn)

    def _shut_down(self, turn: _Turn) -> None:
        if self._stopping:  # people press Ctrl-C twice
            return
        self._stopping = True
        outcome = Outcome(FAILED, "daemon-stopped", "the supervisor was stopped", asked=True)
        for session in self._sessions.all():
            if session.state is not SessionState.ENDING:
                self._stop(session, outcome, turn)
        for instance in self._instances.all():
            for order in (InstanceOrder.GIVE_UP, InstanceOrder.RETRY):
                if order in INSTANCE_MOVES[instance.state]:
                    self._move_instance(instance, order, turn, outcome.message)
                    break

    # Instances.

    def _add_instance(self, instance: Instance, cause: InstanceCause, turn: _Turn, note: str = "") -> None:
        self._instances.add(instance.instance_id, instance)
        self._move_instance(instance, cause, turn, note)

    def _move_instance(self, instance: Instance, cause: InstanceCause, turn: _Turn, note: str = "") -> None:
        """Take one step of the table, and begin what the new state begins with."""
        before = instance.state
        after = INSTANCE_MOVES[before][cause]
        if before in _UNCLAIMED_STATES and after not in _UNCLAIMED_STATES and not instance.session_id:
            self._pool.take_out(instance.instance_id, instance.key)
        self._counts[before] -= 1
        self._counts[after] += 1
        instance.state = after
        instance.since = turn.event.at
        self._instances.record(instance.instance_id, _step(turn.event.at, before, cause, after, note))
        self._begin(instance, turn, note)

    def _begin(self, instance: Instance, turn: _Turn, note: str) -> None:
        """Do what the state begins with, that the instance has just come into."""
        name = instance.instance_id
        if (effect := first_effect(instance)) is not None:
            if instance.session_id:
                phase = PHASES[instance.state]
                turn.out.append(effects.TellSession(session_id=instance.session_id, phase=phase))
            turn.out.append(effect)
            instance.in_flight = type(effect)
            instance.retry_at = None
            return
        match instance.state:
            case InstanceState.WARM:
                instance.in_flight = None
                if instance.session_id:
                    self._move_instance(instance, InstanceOrder.CLAIM, turn)
                else:
                    self._pool.add_warm(name, instance.key)
            case InstanceState.RUNNING:
                self._move_session(self._sessions[instance.session_id], events.RunStarted, turn.event.at)
            case InstanceState.ABANDONED:
                turn.out.append(effects.Cancel(instance_id=name))
            case InstanceState.STUCK:
                instance.in_flight = None
                self._wait_for_retry(instance, turn, note)
            case InstanceState.LEAKED:
                if instance.failed_deletions == LEAK_AFTER:
                    turn.out.append(effects.ReportLeak(instance_id=name, message=note))
            case _:
                self._instances.retire(name)
                self._release(instance, turn)

    def _wait_for_retry(self, instance: Instance, turn: _Turn, note: str) -> None:
        instance.failed_deletions += 1
        instance.retry_at = turn.event.at + delay_s(instance.failed_deletions)
        self._retries.add(instance.retry_at, instance.instance_id)
        self._release(instance, turn)
        if instance.failed_deletions >= LEAK_AFTER:
            self._move_instance(instance, InstanceOrder.REPORT, turn, note)

    def _settle(self, instance: Instance, event: events.InstanceEvent) -> str:
        """Decide what the event means for the instance's session; return a note for the story."""
        match event:
            case events.RunDone():
                outcome, note = Outcome(event.status), f"status {event.status}"
            case events.EffectFailed():
                outcome, note = Outcome(FAILED, event.code, event.message), f"{event.code}: {event.message}"
            case events.VmDied():
                outcome, note = Outcome(FAILED, "vm-died", event.reason), event.reason
            case _:
                return ""
        session = self._sessions.find(instance.session_id)
        if session is None:
            return note
        if session.state is not SessionState.ENDING or (
            isinstance(event, events.RunDone) and session.outcome.asked
        ):
            session.outcome = outcome
            self._move_session(session, type(event), event.at, note)
        return note

    # Sessions.

    def _move_session(self, session: Session, cause: SessionCause, at: float, note: str = "") -> None:
        before = session.state
        session.state = SESSION_MOVES[before][cause]
        if session.state is not before:
            session.since = at
        self._sessions.record(session.session_id, _step(at, before, cause, session.state, note))

    def _stop(self, session: Session, outcome: Outcome, turn: _Turn) -> None:
        session.outcome = outcome
        if session.state is SessionState.QUEUED:
            self._pool.dequeue(session.session_id)
            self._offered.remove(session.offered_id)
            self._end_session(session, type(turn.event), turn)
        else:
            self._move_session(session, type(turn.event), turn.event.at, outcome.message)
            instance = self._instances[session.instance_id]
            self._move_instance(instance, InstanceOrder.GIVE_UP, turn, outcome.message)

    def _release(self, instance: Instance, turn: _Turn) -> None:
        """Let the instance's session have its exit status, unless it has it already."""
        if instance.session_id:
            session = self._sessions[instance.session_id]
            instance.session_id = ""
            self._end_session(session, SessionOrder.RELEASE, turn)

    def _end_session(self, session: Session, cause: SessionCause, turn: _Turn) -> None:
        outcome = session.outcome
        self._move_session(session, cause, turn.event.at, outcome.code)
        self._sessions.retire(session.session_id)
        turn.out.append(
            effects.EndSession(
                session_id=session.session_id,
                status=outcome.status,
                code=outcome.code,
                message=outcome.message,
            )
        )

    def _serve_queue(self, turn: _Turn) -> None:
        """Give those who wait what there is."""
        while choice := self._pool.assign(held=self._held, leaving=self._leaving):
            deed, session_id, instance_id = choice
            if deed is Assign.EVICT:
                self._move_instance(self._instances[instance_id], InstanceOrder.GIVE_UP, turn, "evicted")
                continue
            session = self._sessions[session_id]
            self._pool.dequeue(session_id)
            self._offered.remove(session.offered_id)
            session.instance_id = instance_id or session.offered_id
            self._move_session(session, SessionOrder.ADMIT, turn.event.at, session.instance_id)
            if deed is Assign.CLAIM:
                instance = self._instances[instance_id]
                self._pool.take_out(instance_id, instance.key)
                instance.session_id = session_id
                self._move_instance(instance, InstanceOrder.CLAIM, turn, session_id)
            else:
                instance = Instance(session.instance_id, session.key, session_id)
                self._add_instance(instance, InstanceOrder.MAKE, turn, session_id)

    # What is asked of the whole.

    @property
    def _held(self) -> int:
        """Instances that take up resources, as far as the ceiling is concerned."""
        return len(self._instances) - self._counts[InstanceState.LEAKED]

    @property
    def _leaving(self) -> int:
        """Those of the held ones whose end is decided."""
        counts = self._counts
        return counts[InstanceState.ABANDONED] + counts[InstanceState.DELETING] + counts[InstanceState.STUCK]

    @property
    def _nothing_left(self) -> bool:
        return not self._sessions and self._held == 0

    def _check_fresh(self, instance_id: str, event: events.Event) -> None:
        """Raise unless nobody has, had or was promised an instance of this id."""
        if instance_id in self._offered:
            raise InvalidTransition(
                key=instance_id, state="promised to a session", event=event, story=Story(instance_id, ())
            )
        if self._instances.state(instance_id) is not InstanceState.ABSENT:
            raise self._instances.unfit(instance_id, event)


def _step(at: float, before: str, cause: InstanceCause | SessionCause, after: str, note: str) -> Step:
    return Step(at, before, cause if isinstance(cause, str) else cause.__name__, after, note)
