"""The lives of sessions and instances: one step of the tables at a time, and what each state begins with.

What happens to an instance follows from its table (`instance.MOVES`), what it means for its session from
`_settle`, and what a state begins with from `_begin`. The supply is told of every instance that nobody has
claimed, and when that ends. Nothing here refuses: whether an event fits was checked before.
"""

from collections import Counter
from typing import NamedTuple

from claude_vm.supervisor.core import effects, events
from claude_vm.supervisor.core.due import Agenda, Retry
from claude_vm.supervisor.core.effects import Effect
from claude_vm.supervisor.core.instance import (
    IN_USE,
    PHASES,
    READY,
    UNCLAIMED,
    UNKNOWN_KEY,
    InstanceCause,
    InstanceLife,
    InstanceOrder,
    InstanceState,
    first_effect,
)
from claude_vm.supervisor.core.instance import MOVES as INSTANCE_MOVES
from claude_vm.supervisor.core.invariants import Invariant, Invariants
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.core.pool.supply import Supply
from claude_vm.supervisor.core.queue import Queue
from claude_vm.supervisor.core.registry import Registry
from claude_vm.supervisor.core.retries import LEAK_AFTER, delay_s
from claude_vm.supervisor.core.session import (
    LOST_GUEST,
    Outcome,
    SessionCause,
    SessionLife,
    SessionOrder,
    SessionState,
)
from claude_vm.supervisor.core.session import MOVES as SESSION_MOVES
from claude_vm.supervisor.core.story import Step, cut
from claude_vm.supervisor.statuses import SESSION_FAILED


class Reaction(NamedTuple):
    """The handling of one event: the event, and what shall be done because of it, so far."""

    event: events.Event
    out: list[Effect]


class Lives:
    """All sessions and instances, and the steps that they take. The only writer of them."""

    def __init__(self, queue: Queue, supply: Supply, agenda: Agenda) -> None:
        self.sessions: Registry[SessionLife, SessionState] = Registry(
            absent=SessionState.ABSENT, ended=SessionState.ENDED
        )
        self.instances: Registry[InstanceLife, InstanceState] = Registry(
            absent=InstanceState.ABSENT, ended=InstanceState.DELETED
        )
        self._queue = queue
        self._supply = supply
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
    def staying(self) -> int:
        """Those of the held ones whose end is not decided."""
        return self.held - self.leaving

    @property
    def leaving(self) -> int:
        """Those of the held ones whose end is decided, be it that their deletion has to be tried again."""
        counts = self._counts
        return counts[InstanceState.ABANDONED] + counts[InstanceState.DELETING] + counts[InstanceState.STUCK]

    @property
    def nothing_left(self) -> bool:
        """Whether there is nothing but leaks that people were told of."""
        return not self.sessions and self.held == 0

    # How they begin.

    def request(self, event: events.SessionRequested) -> SessionLife:
        """Let a session wait for an instance."""
        session = SessionLife(event.session_id, event.key, event.instance_id, event.at)
        self._add_session(session, type(event), event.at)
        self._queue.add(session)
        return session

    def refuse(self, event: events.SessionRequested, outcome: Outcome, reaction: Reaction) -> None:
        """Let a session end as soon as it was asked for."""
        session = SessionLife(event.session_id, event.key, event.instance_id, event.at, outcome=outcome)
        self._add_session(session, type(event), event.at)
        self._end_session(session, SessionOrder.REFUSE, reaction)

    def lose(self, event: events.SessionLost, reaction: Reaction) -> None:
        """A found session has ended with its supervisor."""
        outcome = Outcome(SESSION_FAILED, event.code, event.message)
        session = SessionLife(event.session_id, UNKNOWN_KEY, "", event.at, outcome=outcome)
        self.sessions.add(session.session_id, session)
        self._end_session(session, type(event), reaction, f"{event.code}: {event.message}")

    def claim(self, session: SessionLife, instance: InstanceLife, reaction: Reaction) -> None:
        """A session that waits gets an unclaimed instance."""
        is_ready = instance.state in READY
        self._admit(session, instance.instance_id, instance.state.value if is_ready else "making", reaction)
        self._supply.claim(instance.instance_id, instance.key, reaction.event.at, was_ready=is_ready)
        instance.session_id = session.session_id
        instance.to_pause = False
        self.move_instance(instance, InstanceOrder.CLAIM, reaction, session.session_id)

    def make(self, session: SessionLife, reaction: Reaction) -> None:
        """A session that waits gets an instance of its own."""
        at = reaction.event.at
        self._admit(session, session.offered_id, "made", reaction)
        self._supply.lease(session.key, at)
        instance = InstanceLife(session.offered_id, session.key, session.session_id, made_at=at)
        self._add_instance(instance, InstanceOrder.MAKE, reaction, session.session_id)

    def make_ahead(self, event: events.WarmRequested, reaction: Reaction) -> None:
        """The supply has what it asked for: an instance that is made without a session."""
        instance = InstanceLife(event.instance_id, event.key, made_at=event.at, to_pause=event.paused)
        self._add_instance(instance, type(event), reaction)

    def adopt(self, event: events.WarmFound, reaction: Reaction) -> None:
        """A found instance is made ready again."""
        instance = InstanceLife(event.instance_id, event.key, made_at=event.made_at)
        self._add_instance(instance, type(event), reaction)

    def discard(self, instance_id: str, reason: str, reaction: Reaction, key: PoolKey = UNKNOWN_KEY) -> None:
        """A found instance is of no use."""
        self._add_instance(InstanceLife(instance_id, key), events.InstanceFound, reaction, reason)

    def resume(self, event: events.SessionFound, reaction: Reaction) -> SessionLife:
        """A found session goes on in its instance."""
        name, key, at = event.instance_id, event.key, event.at
        session = SessionLife(event.session_id, key, "", at, instance_id=name, source="resumed")
        self._add_session(session, type(event), at, name)
        self._supply.lease(key, at)
        self._add_instance(InstanceLife(name, key, event.session_id), type(event), reaction, event.session_id)
        return session

    def _admit(self, session: SessionLife, instance_id: str, source: str, reaction: Reaction) -> None:
        self._queue.remove(session)
        session.instance_id, session.source = instance_id, source
        self._move_session(session, SessionOrder.ADMIT, reaction.event.at, instance_id)

    def _add_session(self, session: SessionLife, cause: SessionCause, at: float, note: str = "") -> None:
        self.sessions.add(session.session_id, session)
        self._move_session(session, cause, at, note)

    def _add_instance(
        self, instance: InstanceLife, cause: InstanceCause, reaction: Reaction, note: str = ""
    ) -> None:
        self.instances.add(instance.instance_id, instance)
        self.move_instance(instance, cause, reaction, note)

    # Instances.

    def advance(self, instance: InstanceLife, event: events.InstanceEvent, reaction: Reaction) -> None:
        """Something has happened to an instance."""
        note = self._settle(instance, event, reaction)
        cause: InstanceCause = type(event)
        if cause is events.CloneDone and instance.to_pause and instance.state is InstanceState.CLONING:
            cause = InstanceOrder.PRESTART
        self.move_instance(instance, cause, reaction, note)

    def move_instance(
        self, instance: InstanceLife, cause: InstanceCause, reaction: Reaction, note: str = ""
    ) -> None:
        """Take one step of the table, and begin what the new state begins with."""
        before = instance.state
        after = INSTANCE_MOVES[before][cause]
        if after is before:  # claimed while it is made: nothing begins, nothing ends
            self.instances.record(instance.instance_id, _step(reaction.event.at, before, cause, after, note))
            self._tell_phase(instance, reaction)
            return
        if instance.session_id:
            if before in IN_USE and after not in IN_USE:
                self._supply.release(instance.key, reaction.event.at)
        elif before in UNCLAIMED and after not in UNCLAIMED:
            self._supply.lose(instance.instance_id, instance.key, reaction.event.at)
        if cause is InstanceOrder.RETRY:
            self._agenda.discard(Retry(instance.instance_id))
        self._counts[before] -= 1
        self._counts[after] += 1
        instance.state = after
        instance.since = reaction.event.at
        self.instances.record(instance.instance_id, _step(reaction.event.at, before, cause, after, note))
        self._begin(instance, reaction, note)

    def _begin(self, instance: InstanceLife, reaction: Reaction, note: str) -> None:
        """Do what the state begins with, that the instance has just come into."""
        name = instance.instance_id
        if (effect := first_effect(instance)) is not None:
            self._tell_phase(instance, reaction)
            reaction.out.append(effect)
            instance.in_flight = type(effect)
            return
        match instance.state:
            case InstanceState.WARM | InstanceState.PAUSED:
                instance.in_flight = None
                if instance.session_id:
                    self.move_instance(instance, InstanceOrder.CLAIM, reaction)
                else:
                    self._supply.offer(name, instance.key, reaction.event.at)
            case InstanceState.RUNNING:
                self._move_session(self.sessions[instance.session_id], events.RunStarted, reaction.event.at)
            case InstanceState.ABANDONED:
                reaction.out.append(effects.Cancel(instance_id=name))
            case InstanceState.STUCK:
                instance.in_flight = None
                self._wait_for_retry(instance, reaction, note)
            case InstanceState.LEAKED:
                if instance.failed_deletions == LEAK_AFTER:
                    reaction.out.append(effects.ReportLeak(instance_id=name, message=note))
            case _:
                self.instances.retire(name)
                self._release(instance, reaction)

    def _tell_phase(self, instance: InstanceLife, reaction: Reaction) -> None:
        """Tell the instance's session, if there is one, where it stands, unless it knows."""
        phase = PHASES.get(instance.state)
        if instance.session_id and phase is not None:
            session = self.sessions[instance.session_id]
            if session.phase != phase:
                session.phase = phase
                reaction.out.append(effects.TellSession(session_id=session.session_id, phase=phase))

    def _wait_for_retry(self, instance: InstanceLife, reaction: Reaction, note: str) -> None:
        instance.failed_deletions += 1
        self._agenda.set(Retry(instance.instance_id), reaction.event.at + delay_s(instance.failed_deletions))
        self._release(instance, reaction)
        if instance.failed_deletions >= LEAK_AFTER:
            self.move_instance(instance, InstanceOrder.REPORT, reaction, note)

    def _settle(self, instance: InstanceLife, event: events.InstanceEvent, reaction: Reaction) -> str:
        """Decide what the event means for the session or the pool; return a note for the story."""
        match event:
            case events.RunDone():
                outcome, note = Outcome(event.status), f"status {event.status}"
            case events.EffectFailed():
                outcome, note = Outcome(SESSION_FAILED, event.code, event.message, event.detail), event.words
            case events.VmDied():
                outcome, note = Outcome(SESSION_FAILED, "vm-died", event.reason), event.reason
            case _:
                return ""
        session = self.sessions.find(instance.session_id)
        if session is None:
            if instance.state in UNCLAIMED:
                self._supply.fail(
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
            self._part(session, instance, reaction, note)
            return note
        if session.state is not SessionState.ENDING or (
            isinstance(event, events.RunDone) and session.outcome.asked
        ):
            session.outcome = outcome
            self._move_session(session, type(event), event.at, note)
        return note

    def _part(self, session: SessionLife, instance: InstanceLife, reaction: Reaction, note: str) -> None:
        """Let a session wait for another instance, before all others; this one is nobody's then."""
        self._supply.release(instance.key, reaction.event.at)
        instance.session_id = session.instance_id = session.source = ""
        session.phase = "queued"
        session.tried_again = True
        self._queue.add_first(session)
        self._move_session(session, SessionOrder.AGAIN, reaction.event.at, note)
        reaction.out.append(effects.TellSession(session_id=session.session_id, phase="queued"))

    # Sessions.

    def _move_session(self, session: SessionLife, cause: SessionCause, at: float, note: str = "") -> None:
        """Take one step of the table."""
        before = session.state
        session.state = SESSION_MOVES[before][cause]
        if session.state is not before:
            session.since = at
        self.sessions.record(session.session_id, _step(at, before, cause, session.state, note))

    def stop(self, session: SessionLife, outcome: Outcome, cause: SessionCause, reaction: Reaction) -> None:
        """End a session before its main command did."""
        session.outcome = outcome
        if session.state is SessionState.QUEUED:
            self._queue.remove(session)
            self._end_session(session, cause, reaction)
        else:
            self._move_session(session, cause, reaction.event.at, outcome.message)
            instance = self.instances[session.instance_id]
            self.move_instance(instance, InstanceOrder.GIVE_UP, reaction, outcome.message)

    def _release(self, instance: InstanceLife, reaction: Reaction) -> None:
        """Let the instance's session have its exit status, unless it has it already."""
        if instance.session_id:
            session = self.sessions[instance.session_id]
            instance.session_id = ""
            self._end_session(session, SessionOrder.RELEASE, reaction)

    def _end_session(
        self, session: SessionLife, cause: SessionCause, reaction: Reaction, note: str = ""
    ) -> None:
        """Tell a session's end with its exit status, and let go of the session."""
        outcome = session.outcome
        self._move_session(session, cause, reaction.event.at, note or outcome.code)
        self.sessions.retire(session.session_id)
        reaction.out.append(
            effects.EndSession(
                session_id=session.session_id,
                status=outcome.status,
                code=outcome.code,
                message=outcome.message,
                detail=outcome.detail,
            )
        )

    def invariants(self) -> Invariants:
        """Yield what must hold of sessions by themselves, and of instances by themselves."""
        yield from self.sessions.invariants()
        yield from self.instances.invariants()
        found = Counter(instance.state for instance in self.instances.all())
        counted = {state: self._counts[state] for state in found}
        yield Invariant("instances", "they are counted by their states", counted == dict(found))
        there = sum(count for state, count in self._counts.items() if state is not InstanceState.ABSENT)
        gone = self._counts[InstanceState.DELETED]
        yield Invariant("instances", "none is counted twice", there - gone == len(self.instances))


def _step(at: float, before: str, cause: InstanceCause | SessionCause, after: str, note: str) -> Step:
    return Step(at, before, cause if isinstance(cause, str) else cause.__name__, after, cut(note))
