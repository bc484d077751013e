"""What listings and diagnoses may see of the core: copies, not the things themselves."""

import msgspec

from claude_vm.supervisor.core.instance import InstanceLife, InstanceState
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.core.session import SessionLife, SessionState


class SessionView(msgspec.Struct, frozen=True):
    """A session that has not ended.

    `requested_at` and `since` (when it came into its state) are instants of the events' clock. `status` is
    its exit status once that is settled, that is while ENDING. `instance_id` is "" as long as it has none.
    `source` says how its instance came: ``warm`` and ``paused`` were taken from the pool, with ``making`` it
    was already being made ready there; it was ``made`` for the session; ``resumed`` belonged to a dead
    supervisor; "" as long as it has none.
    """

    session_id: str
    state: SessionState
    requested_at: float
    since: float
    key: PoolKey
    instance_id: str
    status: int | None
    source: str


class InstanceView(msgspec.Struct, frozen=True):
    """An instance of which something may be left.

    `key` is `UNKNOWN_KEY` if a dead supervisor left it for deletion, `session_id` "" if no session has it.
    `made_at` is the instant at which its making began, None if a dead supervisor made it, unless it was warm.
    """

    instance_id: str
    state: InstanceState
    since: float
    key: PoolKey
    session_id: str
    failed_deletions: int
    made_at: float | None


class PoolView(msgspec.Struct, frozen=True):
    """What the pool has of one key.

    `wanted` is the number of warm instances that there shall be: 0 if the key is not wanted any more and only
    sessions are left. `making` counts unclaimed instances on their way, to be warm or paused; `claimed` those
    that sessions have. `last_used_at` is the instant of the last use, None if only found ones are here.

    `failures` counts unclaimed instances in a row that came to nothing, `last_error` says why the last one
    did (``code: message``, or ""), and `next_try_at` is the instant before which no other is made; None if
    there is nothing to wait for.

    `takes_mib` is what each unclaimed one counts with; `is_measured` tells that from what is configured.
    `gave_way` says why the last one that gave way did so, "" if there is another one since.
    """

    key: PoolKey
    wanted: int
    warm: int
    making: int
    paused: int
    claimed: int
    last_used_at: float | None
    failures: int
    last_error: str
    next_try_at: float | None
    takes_mib: int = 0
    is_measured: bool = False
    gave_way: str = ""


class MemoryView(msgspec.Struct, frozen=True):
    """What all unclaimed instances count with, and what the host has left; in MiB.

    `available_mib` is None as long as nobody has looked.
    """

    used_mib: int
    available_mib: int | None


def view_session(session: SessionLife) -> SessionView:
    """Return what may be seen of a session."""
    return msgspec.convert(session, SessionView, from_attributes=True)


def view_instance(instance: InstanceLife) -> InstanceView:
    """Return what may be seen of an instance."""
    return msgspec.convert(instance, InstanceView, from_attributes=True)
