"""Who waits for an instance, in the order of the requests."""

from collections import Counter, OrderedDict
from collections.abc import Iterator

from claude_vm.supervisor.core.invariants import Invariant, Invariants
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.core.session import SessionLife, SessionState


class Queue:
    """The sessions that wait, and the ids for instances that they brought with them.

    Only its head is ever served, so that nobody starves. No operation costs more because more sessions wait.
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, SessionLife] = OrderedDict()
        self._awaited: Counter[PoolKey] = Counter()
        self._promised: set[str] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[SessionLife]:
        return iter(self._waiting.values())

    @property
    def head(self) -> SessionLife | None:
        """The session that is served next, or None."""
        return next(iter(self._waiting.values()), None)

    def is_promised(self, instance_id: str) -> bool:
        """Tell whether a waiting session brought this id."""
        return instance_id in self._promised

    def need(self, key: PoolKey) -> int:
        """Return for how many places an instance of a key gives way: to the head, and to each further one.

        If another session waits for that key, it gives way to the head alone.
        """
        return 1 if key in self._awaited else len(self._waiting)

    def add(self, session: SessionLife) -> None:
        """Let a session wait behind all others."""
        self._waiting[session.session_id] = session
        self._awaited[session.key] += 1
        self._promised.add(session.offered_id)

    def add_first(self, session: SessionLife) -> None:
        """Let a session wait before all others: it has had its turn, for nothing."""
        self.add(session)
        self._waiting.move_to_end(session.session_id, last=False)

    def remove(self, session: SessionLife) -> None:
        """Let a session wait no longer."""
        del self._waiting[session.session_id]
        self._promised.remove(session.offered_id)
        self._awaited[session.key] -= 1
        if not self._awaited[session.key]:
            del self._awaited[session.key]

    def invariants(self) -> Invariants:
        """Yield what must hold of the queue."""
        keys, promised = Counter(s.key for s in self), [s.offered_id for s in self]
        yield Invariant("queue", "the awaited keys are counted right", dict(keys) == dict(self._awaited))
        yield Invariant("queue", "each id is promised once", sorted(promised) == sorted(self._promised))
        for name, session in self._waiting.items():
            waits = session.session_id == name and session.state is SessionState.QUEUED
            yield Invariant(name, "what is in the queue waits", waits)
