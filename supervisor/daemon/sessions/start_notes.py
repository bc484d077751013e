"""What a session waits for on its way to a VM, and how it got one. Pure: from the core's views."""

from collections.abc import Sequence

import msgspec

from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.core.session import SessionState
from claude_vm.supervisor.core.views import InstanceView, PoolView, SessionView
from claude_vm.supervisor.daemon.pool.room import is_unclaimed

_SOURCES = {
    "warm": "took a ready VM",
    "paused": "took a VM that was started ahead",
    "making": "took a VM that was being made ready",
    "resumed": "goes on in the VM that it had",
}

_TAKES_NOTHING = "leaked"


def waits_for(
    session_id: str, instances: Sequence[InstanceView], sessions: Sequence[SessionView], max_instances: int
) -> str:
    """Return the phase ``queued`` with what the session waits for, in a line."""
    taken = [i for i in instances if i.state != _TAKES_NOTHING]
    if len(taken) < max_instances:
        return "queued: its VM is made next"
    claimed = sum(bool(i.session_id) for i in taken)
    ready = sum(is_unclaimed(i) for i in taken)
    by = {"by sessions": claimed, "ready or being made ready": ready, "going": len(taken) - claimed - ready}
    shown = ", ".join(f"{count} {what}" for what, count in by.items() if count)
    queue = sorted((s.requested_at, s.session_id) for s in sessions if s.state is SessionState.QUEUED)
    before = next((n for n, (_, name) in enumerate(queue) if name == session_id), 0)
    line = f"queued: waits for a place, {len(taken)} of {max_instances} VMs are in use ({shown})"
    return f"{line}; {before} session(s) are ahead of it" if before else line


def how_it_came(source: str, key: PoolKey, before: Sequence[PoolView]) -> str:
    """Return how a session with this key got its VM, in a few words.

    `source` is the core's word for it (see `SessionView`), `before` is what there was when it was requested.
    """
    if source in _SOURCES:
        return _SOURCES[source]
    ready = [pool.key for pool in before if pool.warm and _same_project(pool.key, key)]
    if any(_without_mounts(other) == _without_mounts(key) for other in ready if other != key):
        lacking = "no ready VM with these mounts"
    elif any(other.generation == key.generation for other in ready if other != key):
        lacking = "no ready VM of this size"
    else:
        lacking = "no ready VM"
    return f"{lacking}: cloning"


def _same_project(one: PoolKey, other: PoolKey) -> bool:
    return (one.driver, one.template) == (other.driver, other.template)


def _without_mounts(key: PoolKey) -> PoolKey:
    return msgspec.structs.replace(key, mounts=())
