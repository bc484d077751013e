"""What must hold between sessions, instances, the queue, the supply and what is due."""

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

from claude_vm.supervisor.core.due import Agenda, Retry
from claude_vm.supervisor.core.instance import (
    IN_FLIGHT,
    IN_USE,
    READY,
    UNCLAIMED,
    UNKNOWN_KEY,
    InstanceLife,
    InstanceState,
)
from claude_vm.supervisor.core.invariants import Invariant, Invariants
from claude_vm.supervisor.core.lives import Lives
from claude_vm.supervisor.core.pool.supply import Supply
from claude_vm.supervisor.core.queue import Queue
from claude_vm.supervisor.core.retries import LEAK_AFTER
from claude_vm.supervisor.core.session import UNDECIDED, SessionLife, SessionState

STUCK = frozenset({InstanceState.STUCK, InstanceState.LEAKED})
"""States in which an instance waits until its deletion is tried again."""

USED = IN_USE - UNCLAIMED
"""States in which an instance has a session without fail."""

STANDS: Mapping[SessionState, frozenset[InstanceState]] = MappingProxyType(
    {
        SessionState.QUEUED: frozenset({InstanceState.ABSENT}),
        SessionState.PREPARING: (UNCLAIMED - READY) | {InstanceState.LEASED},
        SessionState.RUNNING: frozenset({InstanceState.RUNNING}),
        SessionState.ENDING: frozenset({InstanceState.ABANDONED, InstanceState.DELETING}),
    }
)
"""Where the instance of a session stands, by where the session does."""


def invariants(queue: Queue, supply: Supply, lives: Lives, agenda: Agenda) -> Invariants:
    """Yield all of it."""
    sessions, instances = lives.sessions.all(), lives.instances.all()
    for session in sessions:
        yield from _of_session(session, lives)
    for instance in instances:
        yield from _of_instance(instance, lives)
    waiting = [s.session_id for s in sessions if s.state is SessionState.QUEUED]
    yield Invariant("queue", "who waits is in it", sorted(waiting) == sorted(s.session_id for s in queue))
    unclaimed = {
        i.instance_id: (i.key, i.state if i.state in READY else None)
        for i in instances
        if i.state in UNCLAIMED and not i.session_id
    }
    yield Invariant("supply", "it has what nobody has claimed", unclaimed == supply.unclaimed())
    claimed = Counter(i.key for i in instances if i.state in IN_USE and i.session_id)
    yield Invariant("supply", "it counts what sessions have", dict(claimed) == supply.claimed())
    retries = {Retry(i.instance_id) for i in instances if i.state in STUCK}
    yield Invariant("agenda", "what is due is due for a reason", set(agenda) == retries | supply.dues())
    yield Invariant("agenda", "an alarm comes early enough", agenda.wake() is None)
    free = supply.policy.max_instances - lives.held
    served = queue.head is None or (free <= 0 and not supply.furthest(queue.head.key))
    yield Invariant("queue", "nobody waits for what there is", served)
    excess = supply.excess(staying=lives.staying)
    yield Invariant("supply", "it has no more than there is room for", excess is None)


def _of_session(session: SessionLife, lives: Lives) -> Invariants:
    name, instance = session.session_id, lives.instances.find(session.instance_id)
    state = lives.instances.state(session.instance_id)
    yield Invariant(name, "its instance is as far as itself", state in STANDS.get(session.state, ()))
    mutual = instance is None or (instance.session_id, instance.key) == (name, session.key)
    yield Invariant(name, "its instance is its own, and of its key", mutual)
    yield Invariant(name, "how its instance came is known", bool(session.source) == (instance is not None))
    decided = session.outcome is not UNDECIDED
    yield Invariant(name, "it ends with an outcome", decided == (session.state is SessionState.ENDING))


def _of_instance(instance: InstanceLife, lives: Lives) -> Invariants:
    name, state, failed = instance.instance_id, instance.state, instance.failed_deletions
    of_state = IN_FLIGHT.get(state)
    fits = instance.in_flight in of_state if of_state else instance.in_flight is None
    yield Invariant(name, "one effect of its state is in flight", fits)
    session = lives.sessions.find(instance.session_id)
    mutual = session.instance_id == name if session else not instance.session_id
    yield Invariant(name, "its session is its own", mutual)
    must, must_not = state in USED, state in READY | STUCK
    fits = not must_not if session else not must
    yield Invariant(name, "a session has what is used, and nothing that only waits", fits)
    yield Invariant(name, "only garbage has no key", instance.key is not UNKNOWN_KEY or state not in IN_USE)
    leak = failed >= LEAK_AFTER
    yield Invariant(
        name, "a leak was tried often enough", state not in STUCK or leak == (state is InstanceState.LEAKED)
    )
