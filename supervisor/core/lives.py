"""The lives of sessions and instances: one step of the tables at a time, and what each state begins with.

What happens to an instance follows from its table (`instance.MOVES`), what it means for its session from
`settle`, and what a state begins with from `_begin`. The pool is told of every instance that nobody has
claimed, and when that ends. Nothing here refuses: whether an event fits was checked before.
"""

from typing import NamedTuple

from claude_vm.supervisor.core import effects, events
from claude_vm.supervisor.core.due import Agenda, Retry
from claude_vm.supervisor.core.effects import Effect
from claude_vm.supervisor.core.instance import (
    IN_USE,
    PHASES,
    UNCLAIMED,
    Instance,
    InstanceCause,
    InstanceOrder,
    InstanceState,
    first_effect,
)
from claude_vm.supervisor.core.instance import MOVES as INSTANCE_MOVES
from claude_vm.supervisor.core.pool import Pool
from claude_vm.supervisor.core.registry import Registry
from claude_vm.supervisor.core.retries import LEAK_AFTER, delay_s
from claude_vm.supervisor.core.session import (
    FAILED,
    LOST_GUEST,
    Outcome,
    Session,
    SessionCause,
    SessionOrder,
    SessionState,
)
from claude_vm.supervisor.core.session import MOVES as SESSION_MOVES
from claude_vm.supervisor.core.story import Step
from claude_vm.supervisor.core.upkeep import Upkeep


class Turn(NamedTuple):
    """The handling of one event: the event, and what shall be done because of it, so far."""

    event: events.Event
    out: list[Effect]


class Lives:
    """All sessions and instances, and the steps that they take.

    `offered` are the ids for instances that waiting sessions brought with them.
    """

    def __init__(self, pool: Pool, upkeep: Upkeep, agenda: Agenda) -> None:
        self.sessions: Registry[Session, SessionState] = Registry(
            absent=SessionState.ABSENT, ended=SessionState.ENDED
        )
        self.instances: Registry[Instance, InstanceState] = Registry(
            absent=InstanceState.ABSENT, ended=InstanceState.DELETED
        )
        self.offered: set[str] = set()
        self._pool = pool
        self._upkeep = upkeep
        self._agenda = agenda
        self._counts = dict.fromkeys(InstanceState, 0)

    # What is asked of the whole.

    @property
    def held(self) -> int:
        """Instances that take up resources, as far as the ceiling is concerned."""
        return len(self.instances) - self._counts[InstanceState.LEAKED]

    @property
    def going(self) -> int:
        """Those of the held ones that will be gone soon."""
        return self._counts[InstanceState.ABANDONED] + self._counts[InstanceState.DELETING]

    @property
    def leaving(self) -> int:
        """Those of the held ones whose end is decided, be it that their deletion has to be tried again."""
        return self.going + self._counts[InstanceState.STUCK]

    @property
    def nothing_left(self) -> bool:
        """Whether there is nothing but leaks that people were told of."""
        return not self.sessions and self.held == 0

    # Instances.

    def add_instance(self, instance: Instance, cause: InstanceCause, turn: Turn, note: str = "") -> None:
        """Take an instance in, with its first step."""
        self.instances.add(instance.instance_id, instance)
        self.move_instance(instance, cause, turn, note)

    def move_instance(self, instance: Instance, cause: InstanceCause, turn: Turn, note: str = "") -> None:
        """Take one step of the table, and begin what the new state begins with."""
        before = instance.state
        after = INSTANCE_MOVES[before][cause]
        if after is before:  # claimed while it is made: nothing begins, nothing ends
            self.instances.record(instance.instance_id, _step(turn.event.at, before, cause, after, note))
            self._tell_phase(instance, turn)
            return
        if instance.session_id:
            if before in IN_USE and after not in IN_USE:
                self._upkeep.release(instance.key, turn.event.at)
        elif before in UNCLAIMED and after not in UNCLAIMED:
            self._upkeep.lose(instance.instance_id, instance.key, turn.event.at)
        if cause is InstanceOrder.RETRY:
            self._agenda.cancel(Retry(instance.instance_id))
        self._counts[before] -= 1
        self._counts[after] += 1
        instance.state = after
        instance.since = turn.event.at
        self.instances.record(instance.instance_id, _step(turn.event.at, before, cause, after, note))
        self._begin(instance, turn, note)

    def _begin(self, instance: Instance, turn: Turn, note: str) -> None:
        """Do what the state begins with, that the instance has just come into."""
        name = instance.instance_id
        if (effect := first_effect(instance)) is not None:
            self._tell_phase(instance, turn)
            turn.out.append(effect)
            instance.in_flight = type(effect)
            return
        match instance.state:
            case InstanceState.WARM | InstanceState.PAUSED:
                instance.in_flight = None
                if instance.session_id:
                    self.move_instance(instance, InstanceOrder.CLAIM, turn)
                else:
                    self._upkeep.offer(name, instance.key, turn.event.at)
            case InstanceState.RUNNING:
                self.move_session(self.sessions[instance.session_id], events.RunStarted, turn.event.at)
            case InstanceState.ABANDONED:
                turn.out.append(effects.Cancel(instance_id=name))
            case InstanceState.STUCK:
                instance.in_flight = None
                self._wait_for_retry(instance, turn, note)
            case InstanceState.LEAKED:
                if instance.failed_deletions == LEAK_AFTER:
                    turn.out.append(effects.ReportLeak(instance_id=name, message=note))
            case _:
                self.instances.retire(name)
                self._release(instance, turn)

    def _tell_phase(self, instance: Instance, turn: Turn) -> None:
        """Tell the instance's session, if there is one, where it stands, unless it knows."""
        phase = PHASES.get(instance.state)
        if instance.session_id and phase is not None:
            session = self.sessions[instance.session_id]
            if session.phase != phase:
                session.phase = phase
                turn.out.append(effects.TellSession(session_id=session.session_id, phase=phase))

    def _wait_for_retry(self, instance: Instance, turn: Turn, note: str) -> None:
        instance.failed_deletions += 1
        self._agenda.set(Retry(instance.instance_id), turn.event.at + delay_s(instance.failed_deletions))
        self._release(instance, turn)
        if instance.failed_deletions >= LEAK_AFTER:
            self.move_instance(instance, InstanceOrder.REPORT, turn, note)

    def settle(self, instance: Instance, event: events.InstanceEvent, turn: Turn) -> str:
        """Decide what the event means for the session or the pool; return a note for the story."""
        match event:
            case events.RunDone():
                outcome, note = Outcome(event.status), f"status {event.status}"
            case events.EffectFailed():
                outcome, note = Outcome(FAILED, event.code, event.message, event.detail), event.words
            case events.VmDied():
                outcome, note = Outcome(FAILED, "vm-died", event.reason), event.reason
            case _:
                return ""
        session = self.sessions.find(instance.session_id)
        if session is None:
            if instance.state in UNCLAIMED:
                self._upkeep.fail(
                    instance.key,
                    note if isinstance(event, events.EffectFailed) else f"{outcome.code}: {note}",
                    event.at,
                )
            return note
        if (
            instance.state is InstanceState.LEASED
            and isinstance(event, events.EffectFailed)
            and event.code in LOST_GUEST
            and session.may_try_again
        ):
            self._part(session, instance, turn, note)
            return note
        if session.state is not SessionState.ENDING or (
            isinstance(event, events.RunDone) and session.outcome.asked
        ):
            session.outcome = outcome
            self.move_session(session, type(event), event.at, note)
        return note

    def _part(self, session: Session, instance: Instance, turn: Turn, note: str) -> None:
        """Let a session wait for another instance, before all others; this one is nobody's then."""
        self._upkeep.release(instance.key, turn.event.at)
        instance.session_id = session.instance_id = session.source = ""
        session.phase = "queued"
        session.tried_again = True
        self.offered.add(session.offered_id)
        self._pool.enqueue_first(session.session_id, session.key)
        self.move_session(session, SessionOrder.AGAIN, turn.event.at, note)
        turn.out.append(effects.TellSession(session_id=session.session_id, phase="queued"))

    # Sessions.

    def move_session(self, session: Session, cause: SessionCause, at: float, note: str = "") -> None:
        """Take one step of the table."""
        before = session.state
        session.state = SESSION_MOVES[before][cause]
        if session.state is not before:
            session.since = at
        self.sessions.record(session.session_id, _step(at, before, cause, session.state, note))

    def stop(self, session: Session, outcome: Outcome, cause: SessionCause, turn: Turn) -> None:
        """End a session before its main command did."""
        session.outcome = outcome
        if session.state is SessionState.QUEUED:
            self._pool.dequeue(session.session_id)
            self.offered.remove(session.offered_id)
            self.end_session(session, cause, turn)
        else:
            self.move_session(session, cause, turn.event.at, outcome.message)
            instance = self.instances[session.instance_id]
            self.move_instance(instance, InstanceOrder.GIVE_UP, turn, outcome.message)

    def _release(self, instance: Instance, turn: Turn) -> None:
        """Let the instance's session have its exit status, unless it has it already."""
        if instance.session_id:
            session = self.sessions[instance.session_id]
            instance.session_id = ""
            self.end_session(session, SessionOrder.RELEASE, turn)

    def end_session(self, session: Session, cause: SessionCause, turn: Turn) -> None:
        """Let a session's client have its exit status, and let go of the session."""
        outcome = session.outcome
        self.move_session(session, cause, turn.event.at, outcome.code)
        self.sessions.retire(session.session_id)
        turn.out.append(
            effects.EndSession(
                session_id=session.session_id,
                status=outcome.status,
                code=outcome.code,
                message=outcome.message,
                detail=outcome.detail,
            )
        )


def _step(at: float, before: str, cause: InstanceCause | SessionCause, after: str, note: str) -> Step:
    return Step(at, before, cause if isinstance(cause, str) else cause.__name__, after, note)
