"""The core: one `handle`, which takes an event and returns what shall be done.

An event is checked whole before anything changes, and what follows the check can't refuse: an event is taken
completely or not at all. What then happens to sessions and instances is the business of `lives`. At the end,
those who wait are served, and when nobody waits, the pool is filled.

No event costs more because there are more instances or sessions. The exceptions are those that are about all
of them: `ShutdownRequested`, `PolicyChanged`, `DrainRequested` without a key; and `TemplateChanged`, which is
about all keys of a template, as is the first event with a later generation of it; and `Measured`, which is
about all keys that lack memory.
"""

from collections.abc import Iterable, Sequence

from claude_vm.supervisor.core import effects, events
from claude_vm.supervisor.core.due import Aged, Agenda, Retry
from claude_vm.supervisor.core.effects import Effect
from claude_vm.supervisor.core.errors import InvalidTransition
from claude_vm.supervisor.core.instance import HARMLESS as HARMLESS_TO_INSTANCES
from claude_vm.supervisor.core.instance import MOVES as INSTANCE_MOVES
from claude_vm.supervisor.core.instance import (
    READY,
    Instance,
    InstanceCause,
    InstanceOrder,
    InstanceState,
    fits,
)
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.core.lives import Lives, Turn
from claude_vm.supervisor.core.pool import Assign, Pool, PoolPolicy
from claude_vm.supervisor.core.refills import Ask
from claude_vm.supervisor.core.session import FAILED, Outcome, Session, SessionOrder, SessionState
from claude_vm.supervisor.core.session import HARMLESS as HARMLESS_TO_SESSIONS
from claude_vm.supervisor.core.session import MOVES as SESSION_MOVES
from claude_vm.supervisor.core.story import Story
from claude_vm.supervisor.core.upkeep import Upkeep
from claude_vm.supervisor.core.views import (
    InstanceView,
    MemoryView,
    PoolView,
    SessionView,
    view_instance,
    view_session,
)


class Core:
    """All sessions and instances of one supervisor. Not for several threads."""

    def __init__(self, policy: PoolPolicy | None = None) -> None:
        self._pool = Pool(policy or PoolPolicy())
        self._agenda: Agenda = Agenda()
        self._upkeep = Upkeep(self._pool, self._agenda)
        self._lives = Lives(self._pool, self._upkeep, self._agenda)
        self._stopping = False
        self._stop_told = False

    def handle(self, event: events.Event) -> list[Effect]:
        """Take an event; return what shall be done because of it, in this order.

        Raises:
            InvalidTransition: The event does not fit; nothing has changed.
            TypeError: It is none of the events of `claude_vm.supervisor.core.events`.
        """
        turn = Turn(event, [])
        match event:
            case events.EffectEnded() | events.RunStarted() | events.VmDied():
                self._advance(event, turn)
            case events.SessionRequested():
                self._request_session(event, turn)
            case events.StopRequested():
                self._stop_session(event, turn)
            case events.Tick():
                self._take_due(turn)
            case events.WarmRequested():
                self._make_warm(event, turn)
            case events.ShutdownRequested():
                self._shut_down(turn)
            case events.InstanceFound() | events.WarmFound() | events.SessionFound():
                self._find(event, turn)
            case _:
                self._change_wishes(event, turn)
        self._serve_queue(turn)
        self._relieve(turn)
        self._fill_pool(turn)
        if (deadline := self._agenda.wake()) is not None:
            turn.out.append(effects.WakeAt(deadline=deadline))
        if self._stopping and not self._stop_told and self._lives.nothing_left:
            self._stop_told = True
            turn.out.append(effects.StopServing())
        return turn.out

    def sessions(self) -> Sequence[SessionView]:
        """Return the sessions that have not ended, in the order of their requests."""
        return [view_session(session) for session in self._lives.sessions.all()]

    def instances(self) -> Sequence[InstanceView]:
        """Return the instances of which something may be left, oldest first."""
        return [view_instance(instance) for instance in self._lives.instances.all()]

    def pools(self) -> Sequence[PoolView]:
        """Return what there is of each key that is wanted or in use, least recently used first."""
        return self._upkeep.views()

    @property
    def memory(self) -> MemoryView:
        """What the unclaimed instances take, and what the host has left."""
        return MemoryView(self._pool.memory.used_mib, self._pool.memory.available_mib)

    def takes_mib(self, key: PoolKey) -> int | None:
        """Return what was measured of a key's kind, with the margin, in MiB; None if nothing was yet."""
        memory, kind = self._pool.memory, key.kind
        return memory.takes_mib(kind) if memory.is_measured(kind) else None

    def session_of(self, instance_id: str) -> str:
        """Return the session that an instance is made for or claimed by; "" for none."""
        instance = self._lives.instances.find(instance_id)
        return "" if instance is None else instance.session_id

    def source_of(self, session_id: str) -> str:
        """Return how a session's instance came, see `SessionView`; "" if it has none, or is over."""
        session = self._lives.sessions.find(session_id)
        return "" if session is None else session.source

    def session_story(self, session_id: str) -> Story:
        """Return what happened to a session, as far as it is remembered."""
        return self._lives.sessions.story(session_id)

    def instance_story(self, instance_id: str) -> Story:
        """Return what happened to an instance, as far as it is remembered."""
        return self._lives.instances.story(instance_id)

    @property
    def policy(self) -> PoolPolicy:
        """The policy that the pool obeys now."""
        return self._pool.policy

    @property
    def is_empty(self) -> bool:
        """Whether there is no session and no instance at all."""
        return not self._lives.sessions and not self._lives.instances

    @property
    def is_stopping(self) -> bool:
        """Whether `ShutdownRequested` has come."""
        return self._stopping

    # What each event does: first the check, then the change.

    def _advance(self, event: events.EffectEnded | events.RunStarted | events.VmDied, turn: Turn) -> None:
        instances = self._lives.instances
        instance = instances.find(event.instance_id)
        state = instances.state(event.instance_id)
        moves = type(event) in INSTANCE_MOVES[state]
        if not moves and (state, type(event)) not in HARMLESS_TO_INSTANCES:
            raise instances.unfit(event.instance_id, event)
        if instance is None:
            return
        if not fits(instance, event):
            raise instances.unfit(event.instance_id, event)
        if moves:
            note = self._lives.settle(instance, event, turn)
            self._lives.move_instance(instance, _cause(instance, event), turn, note)

    def _request_session(self, event: events.SessionRequested, turn: Turn) -> None:
        self._check_new_session(event)
        self._check_fresh(event.instance_id, event)
        session = Session(event.session_id, event.key, offered_id=event.instance_id, requested_at=event.at)
        self._lives.sessions.add(session.session_id, session)
        self._lives.move_session(session, type(event), event.at)
        if self._stopping:
            session.outcome = Outcome(FAILED, "shutting-down", "the supervisor is shutting down")
            self._lives.end_session(session, SessionOrder.REFUSE, turn)
            return
        self._lives.offered.add(session.offered_id)
        self._pool.enqueue(session.session_id, session.key)
        self._notice(session.key, turn)
        self._upkeep.want(session.key, event.at)
        self._serve_queue(turn)
        if session.state is SessionState.QUEUED:
            turn.out.append(effects.TellSession(session_id=session.session_id, phase="queued"))

    def _stop_session(self, event: events.StopRequested, turn: Turn) -> None:
        sessions = self._lives.sessions
        state = sessions.state(event.session_id)
        if type(event) in SESSION_MOVES[state]:
            outcome = Outcome(event.status, "stopped", event.reason, asked=True)
            self._lives.stop(sessions[event.session_id], outcome, type(event), turn)
        elif (state, type(event)) not in HARMLESS_TO_SESSIONS:
            raise sessions.unfit(event.session_id, event)

    def _take_due(self, turn: Turn) -> None:
        at = turn.event.at
        self._agenda.rung(at)
        while (due := self._agenda.take(at)) is not None:
            match due:
                case Retry(instance_id=name):
                    self._lives.move_instance(self._lives.instances[name], InstanceOrder.RETRY, turn)
                case Aged(instance_id=name):
                    self._give_up([name], turn, "too old")
                case _:
                    self._give_up(self._upkeep.due(due, at), turn, "not used for long")

    def _make_warm(self, event: events.WarmRequested, turn: Turn) -> None:
        self._check_fresh(event.instance_id, event)
        key, at = event.key, event.at
        if event.available_mib is not None:
            self._pool.memory.hear(event.available_mib)
        if self._upkeep.answer(event.instance_id, key, paused=event.paused, at=at, places=self._places):
            instance = Instance(event.instance_id, key, made_at=at, to_pause=event.paused)
            self._lives.add_instance(instance, type(event), turn)

    def _find(self, event: events.InstanceFound | events.WarmFound | events.SessionFound, turn: Turn) -> None:
        """Take over what a dead supervisor left."""
        if isinstance(event, events.SessionFound):
            self._check_new_session(event)
        name = event.instance_id
        self._check_fresh(name, event)
        match event:
            case events.InstanceFound():
                self._lives.add_instance(Instance(name), type(event), turn, event.reason)
            case events.WarmFound(key=key, made_at=made_at, at=at):
                self._notice(key, turn)
                places = 0 if self._stopping else self._places
                if self._upkeep.adopt(name, key, made_at=made_at, at=at, places=places):
                    self._lives.add_instance(Instance(name, key, made_at=made_at), type(event), turn)
                else:
                    self._lives.add_instance(
                        Instance(name, key), events.InstanceFound, turn, "no place for it"
                    )
            case _:
                session_id, key = event.session_id, event.key
                session = Session(session_id, key, "", event.at, instance_id=name, source="resumed")
                self._lives.sessions.add(session_id, session)
                self._lives.move_session(session, type(event), event.at, name)
                self._upkeep.lease(key, event.at)
                self._lives.add_instance(Instance(name, key, session_id), type(event), turn, session_id)
                if self._stopping:
                    self._lives.stop(session, _DAEMON_STOPPED, events.ShutdownRequested, turn)

    def _change_wishes(self, event: events.Event, turn: Turn) -> None:
        """Let the pool want other things than before."""
        match event:
            case events.FillRequested(key=key, size=size, at=at):
                if not self._stopping:
                    self._notice(key, turn)
                    self._upkeep.fill(key, size, at)
            case events.DrainRequested(key=None):
                self._give_up(self._upkeep.forget_all(), turn, "drained")
            case events.DrainRequested(key=PoolKey() as key):
                self._give_up(self._upkeep.forget(key), turn, "drained")
            case events.TemplateChanged(driver=driver, template=template, generation=new, sizes=sizes, at=at):
                gone = self._upkeep.change_template(driver, template, new, at, sizes=sizes)
                self._give_up(gone, turn, _TEMPLATE_CHANGED)
            case events.PolicyChanged(policy=policy, at=at):
                if policy != self._pool.policy:
                    self._give_up(self._upkeep.change_policy(policy, at), turn, "other settings")
            case events.Measured(available_mib=available_mib, taken=taken, at=at):
                self._upkeep.measure(taken, available_mib, at)
            case _:
                raise TypeError(f"no event of the core: {event}")

    def _notice(self, key: PoolKey, turn: Turn) -> None:
        """Give up what is of an older generation than a key that comes fresh from disk."""
        self._give_up(self._upkeep.notice(key, turn.event.at), turn, _TEMPLATE_CHANGED)

    def _shut_down(self, turn: Turn) -> None:
        if self._stopping:  # people press Ctrl-C twice
            return
        self._stopping = True
        self._upkeep.forget_all()  # its instances are given up below, in their turn
        for session in self._lives.sessions.all():
            if session.state is not SessionState.ENDING:
                self._lives.stop(session, _DAEMON_STOPPED, events.ShutdownRequested, turn)
        for instance in self._lives.instances.all():
            for order in (InstanceOrder.GIVE_UP, InstanceOrder.RETRY):
                if order in INSTANCE_MOVES[instance.state]:
                    self._lives.move_instance(instance, order, turn, _DAEMON_STOPPED.message)
                    break

    # What follows from it.

    def _serve_queue(self, turn: Turn) -> None:
        """Give those who wait what there is."""
        lives, at = self._lives, turn.event.at
        while choice := self._pool.assign(held=lives.held, leaving=lives.going):
            deed, session_id, instance_id = choice
            if deed is Assign.EVICT:
                self._let_give_way(instance_id, "a session needed the place", turn)
                continue
            session = lives.sessions[session_id]
            self._pool.dequeue(session_id)
            lives.offered.remove(session.offered_id)
            session.instance_id = instance_id or session.offered_id
            lives.move_session(session, SessionOrder.ADMIT, at, session.instance_id)
            if deed is Assign.CLAIM:
                instance = lives.instances[instance_id]
                is_ready = instance.state in READY
                session.source = instance.state.value if is_ready else "making"
                self._upkeep.lose(instance_id, instance.key, at)
                if is_ready:  # else nobody knows yet whether it comes to anything
                    self._upkeep.succeed(instance.key)
                self._upkeep.lease(session.key, at)
                instance.session_id = session_id
                instance.to_pause = False
                lives.move_instance(instance, InstanceOrder.CLAIM, turn, session_id)
            else:
                session.source = "made"
                self._upkeep.lease(session.key, at)
                instance = Instance(session.instance_id, session.key, session_id, made_at=at)
                lives.add_instance(instance, InstanceOrder.MAKE, turn, session_id)

    def _relieve(self, turn: Turn) -> None:
        """Let unclaimed instances give way as long as there are too many of them."""
        while (found := self._pool.burden(held=self._lives.held - self._lives.leaving)) is not None:
            self._let_give_way(*found, turn)

    def _fill_pool(self, turn: Turn) -> None:
        """Ask for what the pool lacks, unless a session waits."""
        lives = self._lives
        at = turn.event.at
        while (step := self._upkeep.next_step(places=self._places, leaving=lives.leaving, at=at)) is not None:
            if isinstance(step, Ask):
                turn.out.append(effects.RequestWarm(key=step.key, paused=step.paused))
            else:
                self._let_give_way(step.instance_id, "another one needed the room", turn)

    def _let_give_way(self, name: str, why: str, turn: Turn) -> None:
        """Give up an unclaimed instance whose key is wanted, and let that be seen."""
        self._upkeep.note_gave_way(self._lives.instances[name].key, why)
        self._give_up([name], turn, why)

    def _give_up(self, names: Iterable[str], turn: Turn, note: str) -> None:
        """Give up unclaimed instances."""
        for name in names:
            self._lives.move_instance(self._lives.instances[name], InstanceOrder.GIVE_UP, turn, note)

    @property
    def _places(self) -> int:
        """How many more instances there may be."""
        return self._pool.policy.max_instances - self._lives.held

    def _check_new_session(self, event: events.SessionRequested | events.SessionFound) -> None:
        """Raise unless there is, and was, no session of this id."""
        if self._lives.sessions.state(event.session_id) is not SessionState.ABSENT:
            raise self._lives.sessions.unfit(event.session_id, event)

    def _check_fresh(self, instance_id: str, event: events.Event) -> None:
        """Raise unless nobody has, had or was promised an instance of this id."""
        if instance_id in self._lives.offered:
            raise InvalidTransition(
                key=instance_id, state="promised to a session", event=event, story=Story(instance_id, ())
            )
        if self._lives.instances.state(instance_id) is not InstanceState.ABSENT:
            raise self._lives.instances.unfit(instance_id, event)


_TEMPLATE_CHANGED = "its template has changed"
_DAEMON_STOPPED = Outcome(FAILED, "daemon-stopped", "the supervisor was stopped", asked=True)


def _cause(instance: Instance, event: events.Event) -> InstanceCause:
    """Return by what an event moves an instance; mostly it is the event itself."""
    if isinstance(event, events.CloneDone) and instance.to_pause and instance.state is InstanceState.CLONING:
        return InstanceOrder.PRESTART
    return type(event)
