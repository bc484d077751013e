"""What is said when a session has ended: what goes with its VM, and might be believed to stay."""

from collections.abc import Iterator

from claude_vm.supervisor.ssh.remaining import Remaining

_TOLD = 3
_WIDTH = 60
_RESUME = b"Resume this session with"
"""What Claude Code prints last on a terminal, above a command that finds nothing any more. There is no switch
for it except the one that keeps no conversation at all. Source: Claude Code 2.1 (a test watches it)."""


def end_notes(remaining: Remaining, last_words: bytes) -> Iterator[str]:
    """Yield the lines; mostly there are none. `last_words` are the last bytes that its terminal got."""
    if remaining.count:
        shown = [_shortened(command) for command in remaining.commands[:_TOLD]]
        if (more := remaining.count - len(shown)) > 0:
            shown.append(f"{more} more")
        processes = "1 process" if remaining.count == 1 else f"{remaining.count} processes"
        yield f"claude-vm: {processes} still at work ended with the VM: {', '.join(shown)}"
    if _RESUME in last_words:
        yield "claude-vm: this conversation ended with its VM, so `claude --resume` won't find it"


def _shortened(command: str) -> str:
    return command if len(command) <= _WIDTH else command[: _WIDTH - 1] + "…"
