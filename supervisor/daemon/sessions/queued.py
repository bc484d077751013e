"""What a queued session waits for. Pure: from the core's views."""

from collections.abc import Sequence

from claude_vm.supervisor.core.session import SessionState
from claude_vm.supervisor.core.views import InstanceView, SessionView
from claude_vm.supervisor.daemon.pool.room import is_unclaimed

_TAKES_NOTHING = "leaked"


def waits_for(
    session_id: str, instances: Sequence[InstanceView], sessions: Sequence[SessionView], max_instances: int
) -> str:
    """Return the phase ``queued`` with what the session waits for, in a line."""
    taken = [i for i in instances if i.state != _TAKES_NOTHING]
    if len(taken) < max_instances:
        return "queued: its VM is made next"
    claimed = sum(i.session_id is not None for i in taken)
    ready = sum(is_unclaimed(i) for i in taken)
    by = {"by sessions": claimed, "ready or being made ready": ready, "going": len(taken) - claimed - ready}
    shown = ", ".join(f"{count} {what}" for what, count in by.items() if count)
    queue = sorted((s.requested_at, s.session_id) for s in sessions if s.state is SessionState.QUEUED)
    before = next((n for n, (_, name) in enumerate(queue) if name == session_id), 0)
    line = f"queued: waits for a place, {len(taken)} of {max_instances} VMs are in use ({shown})"
    return f"{line}; {before} session(s) are before it" if before else line
