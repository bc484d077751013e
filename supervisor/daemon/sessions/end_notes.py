"""What is said when a session has ended: why, and what goes with its VM and might be believed to stay."""

from collections.abc import Iterator
from pathlib import Path

from claude_vm.supervisor.core.effects import EndSession
from claude_vm.supervisor.ssh.remaining import RemainingWork

_LOST = (
    "what it wrote into its project is kept; start it again, and if it fails again, see"
    " {home}/logs/daemon.log"
)

_NEXT_STEPS = {
    "vm-died": _LOST,
    "ssh-link-lost": _LOST,
    "guest-failed": _LOST,
    "journal-failed": "make room in {home}, then start it again",
}

_TOLD = 3
_WIDTH = 60
_RESUME = b"Resume this session with"
"""What Claude Code prints last on a terminal, above a command that finds nothing any more. There is no switch
for it except the one that keeps no conversation at all. Source: Claude Code 2.1 (a test watches it)."""


def failure_notes(outcome: EndSession, home: Path) -> tuple[str, ...]:
    """Return why a session ended by no fault of its command, and what to do; `home` is the data folder.

    The first line is the message, the others stand beneath it. Empty if its command just ended.
    """
    if not outcome.code:
        return ()
    step = _NEXT_STEPS.get(outcome.code)
    what_to_do = (step.format(home=home),) if step else ()
    return f"claude-vm: {outcome.message} [{outcome.code}]", *outcome.detail, *what_to_do


def end_notes(remaining: RemainingWork, last_words: bytes) -> Iterator[str]:
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
