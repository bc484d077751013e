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

from claude_vm.supervisor.core import consistency, effects, events
from claude_vm.supervisor.core.due import Aged, Agenda, Retry
from claude_vm.supervisor.core.effects import Effect
from claude_vm.supervisor.core.errors import InvalidTransition
from claude_vm.supervisor.core.instance import HARMLESS as HARMLESS_TO_INSTANCES
from claude_vm.supervisor.core.instance import MOVES as INSTANCE_MOVES
from claude_vm.supervisor.core.instance import InstanceOrder, InstanceState, fits
from claude_vm.supervisor.core.invariants import Invariant, Invariants, check
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.core.lives import Lives, Reaction
from claude_vm.supervisor.core.policy import PoolPolicy
from claude_vm.supervisor.core.pool.supply import Supply
from claude_vm.supervisor.core.queue import Queue
from claude_vm.supervisor.core.session import HARMLESS as HARMLESS_TO_SESSIONS
from claude_vm.supervisor.core.session import MOVES as SESSION_MOVES
from claude_vm.supervisor.core.session import Outcome, SessionState
from claude_vm.supervisor.core.story import Story
from claude_vm.supervisor.core.views import (
    InstanceView,
    MemoryView,
    PoolView,
    SessionView,
    view_instance,
    view_session,
)
from claude_vm.supervisor.statuses import SESSION_FAILED

_TEMPLATE_CHANGED = "its template has changed"
_DAEMON_STOPPED = Outcome(SESSION_FAILED, "daemon-stopped", "the supervisor was stopped", asked=True)
_SHUTTING_DOWN = Outcome(SESSION_FAILED, "shutting-down", "the supervisor is shutting down")


class Core:
    """All sessions and instances of one supervisor. Not for several threads."""

    def __init__(self, policy: PoolPolicy | None = None) -> None:
        self._agenda: Agenda = Agenda()
        self._queue = Queue()
        self._supply = Supply(policy or PoolPolicy(), self._agenda)
        self._lives = Lives(self._queue, self._supply, self._agenda)
        self._stopping = False
        self._stop_told = False

    def handle(self, event: events.Event) -> list[Effect]:
        """Take an event; return what shall be done because of it, in this order.

        Raises:
            InvalidTransition: The event does not fit; nothing has changed.
            TypeError: It is none of the events of `claude_vm.supervisor.core.events`.
        """
        reaction = Reaction(event, [])
        match event:
            case events.EffectEnded() | events.RunStarted() | events.VmDied():
                self._advance(event, reaction)
            case events.SessionRequested():
                self._request_session(event, reaction)
            case events.StopRequested():
                self._stop_session(event, reaction)
            case events.Tick():
                self._take_due(reaction)
            case events.WarmRequested():
                self._make_warm(event, reaction)
            case events.ShutdownRequested():
                self._shut_down(reaction)
            case events.InstanceFound() | events.WarmFound() | events.SessionFound() | events.SessionLost():
                self._find(event, reaction)
            case _:
                self._change_demand(event, reaction)
        self._serve_queue(reaction)
        self._relieve(reaction)
        self._fill_pool(reaction)
        if (deadline := self._agenda.wake()) is not None:
            reaction.out.append(effects.WakeAt(deadline=deadline))
        if self._stopping and not self._stop_told and self._lives.nothing_left:
            self._stop_told = True
            reaction.out.append(effects.StopServing())
        return reaction.out

    def sessions(self) -> Sequence[SessionView]:
        """Return the sessions that have not ended, in the order of their requests."""
        return [view_session(session) for session in self._lives.sessions.all()]

    def instances(self) -> Sequence[InstanceView]:
        """Return the instances of which something may be left, oldest first."""
        return [view_instance(instance) for instance in self._lives.instances.all()]

    def pools(self) -> Sequence[PoolView]:
        """Return what there is of each key that is wanted or in use, least recently used first."""
        return self._supply.views()

    @property
    def memory(self) -> MemoryView:
        """What the unclaimed instances take, and what the host has left."""
        return self._supply.memory

    def takes_mib(self, key: PoolKey) -> int | None:
        """Return what was measured of a key's kind, with the margin, in MiB; None if nothing was yet."""
        return self._supply.takes_mib(key)

    def session_of(self, instance_id: str) -> str:
        """Return the session that an instance is made for or claimed by; "" for none."""
        instance = self._lives.instances.find(instance_id)
        return "" if instance is None else instance.session_id

    def source_of(self, session_id: str) -> str:
        """Return how a session's instance came, see `SessionView`; "" if it has none, or is over."""
        session = self._lives.sessions.find(session_id)
        return "" if session is None else session.source

    def knows(self, name: str) -> bool:
        """Tell whether an id is that of a session or an instance, or was not long ago."""
        sessions, instances = self._lives.sessions, self._lives.instances
        absent = sessions.state(name) is SessionState.ABSENT
        return not absent or instances.state(name) is not InstanceState.ABSENT

    def told(self) -> list[str]:
        """Return the sessions and instances whose story is remembered."""
        return [*self._lives.sessions.told(), *self._lives.instances.told()]

    def session_story(self, session_id: str) -> Story:
        """Return what happened to a session, as far as it is remembered."""
        return self._lives.sessions.story(session_id)

    def instance_story(self, instance_id: str) -> Story:
        """Return what happened to an instance, as far as it is remembered."""
        return self._lives.instances.story(instance_id)

    @property
    def policy(self) -> PoolPolicy:
        """The policy that the pool obeys now."""
        return self._supply.policy

    def invariants(self) -> Invariants:
        """Yield all that must hold between two events. That costs more the more there is."""
        lives, queue, supply = self._lives, self._queue, self._supply
        yield from lives.invariants()
        yield from queue.invariants()
        yield from supply.invariants()
        yield from consistency.invariants(queue, supply, lives, self._agenda)
        ahead = self._stopping and (queue or supply.unclaimed())
        yield Invariant("core", "nobody waits, and nothing is kept, at the end", not ahead)

    def validate(self) -> None:
        """Check that all of it holds. For tests.

        Raises:
            BrokenInvariant: Something does not.
        """
        check(self.invariants())

    # What each event does: first the check, then the change.

    def _advance(
        self, event: events.EffectEnded | events.RunStarted | events.VmDied, reaction: Reaction
    ) -> None:
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
            self._lives.advance(instance, event, reaction)

    def _request_session(self, event: events.SessionRequested, reaction: Reaction) -> None:
        self._check_new_session(event)
        self._check_fresh(event.instance_id, event)
        if self._stopping:
            self._lives.refuse(event, _SHUTTING_DOWN, reaction)
            return
        session = self._lives.request(event)
        self._notice(session.key, reaction)
        self._supply.want(session.key, event.at)
        self._serve_queue(reaction)
        if session.state is SessionState.QUEUED:
            reaction.out.append(effects.TellSession(session_id=session.session_id, phase="queued"))

    def _stop_session(self, event: events.StopRequested, reaction: Reaction) -> None:
        sessions = self._lives.sessions
        state = sessions.state(event.session_id)
        if type(event) in SESSION_MOVES[state]:
            outcome = Outcome(event.status, "stopped", event.reason, asked=True)
            self._lives.stop(sessions[event.session_id], outcome, type(event), reaction)
        elif (state, type(event)) not in HARMLESS_TO_SESSIONS:
            raise sessions.unfit(event.session_id, event)

    def _take_due(self, reaction: Reaction) -> None:
        at = reaction.event.at
        self._agenda.rung(at)
        while (due := self._agenda.take(at)) is not None:
            match due:
                case Retry(instance_id=name):
                    self._lives.move_instance(self._lives.instances[name], InstanceOrder.RETRY, reaction)
                case Aged(instance_id=name):
                    self._give_up([name], reaction, "too old")
                case _:
                    self._give_up(self._supply.due(due, at), reaction, "not used for long")

    def _make_warm(self, event: events.WarmRequested, reaction: Reaction) -> None:
        self._check_fresh(event.instance_id, event)
        if self._supply.answer(event, capacity=self._capacity):
            self._lives.make_ahead(event, reaction)

    def _find(
        self,
        event: events.InstanceFound | events.WarmFound | events.SessionFound | events.SessionLost,
        reaction: Reaction,
    ) -> None:
        """Take over what a dead supervisor left."""
        if isinstance(event, events.SessionFound | events.SessionLost):
            self._check_new_session(event)
        if isinstance(event, events.SessionLost):
            self._lives.lose(event, reaction)
            return
        name = event.instance_id
        self._check_fresh(name, event)
        match event:
            case events.InstanceFound():
                self._lives.discard(name, event.reason, reaction)
            case events.WarmFound(key=key):
                self._notice(key, reaction)
                if self._supply.adopt(event, capacity=0 if self._stopping else self._capacity):
                    self._lives.adopt(event, reaction)
                else:
                    self._lives.discard(name, "no place for it", reaction, key)
            case _:
                session = self._lives.resume(event, reaction)
                if self._stopping:
                    self._lives.stop(session, _DAEMON_STOPPED, events.ShutdownRequested, reaction)

    def _change_demand(self, event: events.Event, reaction: Reaction) -> None:
        """Let the pool want other things than before."""
        match event:
            case events.FillRequested(key=key, size=size, at=at):
                if not self._stopping:
                    self._notice(key, reaction)
                    self._supply.fill(key, size, at)
            case events.DrainRequested(key=None):
                self._give_up(self._supply.forget_all(), reaction, "drained")
            case events.DrainRequested(key=PoolKey() as key):
                self._give_up(self._supply.forget(key), reaction, "drained")
            case events.TemplateChanged(driver=driver, template=template, generation=new, sizes=sizes, at=at):
                gone = self._supply.change_template(driver, template, new, at, sizes=sizes)
                self._give_up(gone, reaction, _TEMPLATE_CHANGED)
            case events.PolicyChanged(policy=policy, at=at):
                if policy != self._supply.policy:
                    self._give_up(self._supply.change_policy(policy, at), reaction, "other settings")
            case events.Measured(available_mib=available_mib, taken=taken, at=at):
                self._supply.measure(taken, available_mib, at)
            case _:
                raise TypeError(f"no event of the core: {event}")

    def _notice(self, key: PoolKey, reaction: Reaction) -> None:
        """Give up what is of an older generation than a key that comes fresh from disk."""
        self._give_up(self._supply.notice(key, reaction.event.at), reaction, _TEMPLATE_CHANGED)

    def _shut_down(self, reaction: Reaction) -> None:
        if self._stopping:  # people press Ctrl-C twice
            return
        self._stopping = True
        self._supply.forget_all()  # its instances are given up below, in their turn
        for session in self._lives.sessions.all():
            if session.state is not SessionState.ENDING:
                self._lives.stop(session, _DAEMON_STOPPED, events.ShutdownRequested, reaction)
        for instance in self._lives.instances.all():
            for order in (InstanceOrder.GIVE_UP, InstanceOrder.RETRY):
                if order in INSTANCE_MOVES[instance.state]:
                    self._lives.move_instance(instance, order, reaction, _DAEMON_STOPPED.message)
                    break

    # What follows from it.

    def _serve_queue(self, reaction: Reaction) -> None:
        """Give those who wait what there is.

        The first one gets what is ready of its key, else what is being made without a session, else one of
        its own. When there is no place for that, unclaimed instances of other keys give way.
        """
        lives, supply = self._lives, self._supply
        while (session := self._queue.head) is not None:
            if found := supply.furthest(session.key):
                lives.claim(session, lives.instances[found], reaction)
            elif self._capacity > 0:
                lives.make(session, reaction)
            elif (other := supply.least_missed()) is not None and lives.going < self._queue.need(other[1]):
                self._let_give_way(*other, "a session needed the place", reaction)
            else:
                break

    def _relieve(self, reaction: Reaction) -> None:
        """Let unclaimed instances give way as long as there are too many of them."""
        while (found := self._supply.excess(staying=self._lives.staying)) is not None:
            self._let_give_way(*found, reaction)

    def _fill_pool(self, reaction: Reaction) -> None:
        """Ask for what the pool lacks, unless a session waits."""
        lives, supply, at = self._lives, self._supply, reaction.event.at
        while supply.is_short and (
            step := supply.next_step(
                capacity=self._capacity, leaving=lives.leaving, awaited=bool(self._queue), at=at
            )
        ):
            if isinstance(step, effects.RequestWarm):
                reaction.out.append(step)
            else:
                self._let_give_way(*step, "another one needed the room", reaction)

    def _let_give_way(self, name: str, key: PoolKey, why: str, reaction: Reaction) -> None:
        """Give up an unclaimed instance whose key is wanted, and let that be seen."""
        self._supply.give_way(key, why)
        self._give_up([name], reaction, why)

    def _give_up(self, names: Iterable[str], reaction: Reaction, note: str) -> None:
        """Give up unclaimed instances."""
        for name in names:
            self._lives.move_instance(self._lives.instances[name], InstanceOrder.GIVE_UP, reaction, note)

    @property
    def _capacity(self) -> int:
        """How many more instances there may be."""
        return self._supply.policy.max_instances - self._lives.held

    def _check_new_session(
        self, event: events.SessionRequested | events.SessionFound | events.SessionLost
    ) -> None:
        """Raise unless there is, and was, no session of this id."""
        if self._lives.sessions.state(event.session_id) is not SessionState.ABSENT:
            raise self._lives.sessions.unfit(event.session_id, event)

    def _check_fresh(self, instance_id: str, event: events.Event) -> None:
        """Raise unless nobody has, had or was promised an instance of this id."""
        if self._queue.is_promised(instance_id):
            raise InvalidTransition(
                key=instance_id, state="promised to a session", event=event, story=Story(instance_id, ())
            )
        if self._lives.instances.state(instance_id) is not InstanceState.ABSENT:
            raise self._lives.instances.unfit(instance_id, event)
