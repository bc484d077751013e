"""What listings and diagnoses may see of the core: copies, not the things themselves."""

import msgspec

from claude_vm.supervisor.core.instance import UNKNOWN_KEY, Instance, InstanceState
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.core.session import UNDECIDED, Session, SessionState


class SessionView(msgspec.Struct, frozen=True):
    """A session that has not ended.

    `requested_at` and `since` (when it came into its state) are instants of the events' clock. `status` is
    its exit status once that is settled, that is while ENDING.
    """

    session_id: str
    state: SessionState
    requested_at: float
    since: float
    key: PoolKey
    instance_id: str | None
    status: int | None


class InstanceView(msgspec.Struct, frozen=True):
    """An instance of which something may be left. `key` is None if a dead supervisor left it."""

    instance_id: str
    state: InstanceState
    since: float
    key: PoolKey | None
    session_id: str | None
    failed_deletions: int


def view_session(session: Session) -> SessionView:
    """Return what may be seen of a session."""
    return SessionView(
        session_id=session.session_id,
        state=session.state,
        requested_at=session.requested_at,
        since=session.since,
        key=session.key,
        instance_id=session.instance_id or None,
        status=None if session.outcome is UNDECIDED else session.outcome.status,
    )


def view_instance(instance: Instance) -> InstanceView:
    """Return what may be seen of an instance."""
    return InstanceView(
        instance_id=instance.instance_id,
        state=instance.state,
        since=instance.since,
        key=None if instance.key is UNKNOWN_KEY else instance.key,
        session_id=instance.session_id or None,
        failed_deletions=instance.failed_deletions,
    )
