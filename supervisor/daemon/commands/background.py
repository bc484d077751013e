"""Refuses what has a purpose only when Claude's work goes on without its main process: a VM does not."""

from collections.abc import Sequence

from claude_vm.context.claude_command import background_word
from claude_vm.supervisor.daemon.errors import CommandError
from claude_vm.supervisor.statuses import USAGE


def refuse_background(args: Sequence[str], configured: Sequence[str]) -> None:
    """Refuse such words, typed (`args`) or `configured`, before anything is spent on them.

    Raises:
        CommandError: There is one.
    """
    for words, source, status in ((args, "", USAGE), (configured, " (claude_args)", None)):
        word = background_word(words)
        if word.startswith("-"):
            why = "would leave Claude's work to a VM that is thrown away as soon as this returns"
            hint = (
                "leave it out: the work goes on as long as its command runs, for example in another terminal"
            )
            raise CommandError("no-background", f"{word}{source} {why}", hint=hint, status=status)
        if word:
            why = "is for work that Claude has left in the background, and a fresh VM has none"
            hint = "the sessions of all projects: claude-vm ps"
            raise CommandError("no-background", f"{word}{source} {why}", hint=hint, status=status)
