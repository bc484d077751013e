"""What a session runs: Claude with its words, or a command of the user's. Needs no client."""

import shlex
from collections.abc import Sequence

import msgspec

from claude_vm.context.claude_command import background_word, claude_argv
from claude_vm.supervisor.daemon.clients.workspace import Workspace
from claude_vm.supervisor.daemon.errors import CommandError
from claude_vm.supervisor.daemon.place.resolve import Place, resolve
from claude_vm.supervisor.ssh.launch import LaunchMode
from claude_vm.supervisor.statuses import USAGE
from claude_vm.supervisor.wire.escape import escape_cell

TEXT_LIMIT = 60
"""Characters of a command in listings."""


class MainCommand(msgspec.Struct, frozen=True):
    """Words, and how they are run. `text` is one line for listings."""

    mode: LaunchMode
    argv: tuple[str, ...]
    text: str


async def resolve_claude(workspace: Workspace, args: Sequence[str]) -> tuple[Place, MainCommand]:
    """Return the caller's place, and Claude with these arguments, as it is run there.

    Raises:
        CommandError: Its work would go on without its main command; or there is no Claude in the template.
        Exception: See `resolve`.
    """
    place = await resolve(workspace, lambda found: refuse_background(args, found.defaults.claude_args or ()))
    if place.template.claude_version is None:
        raise CommandError(
            "no-agent", "this project's template was built without Claude Code", hint="run: claude-vm setup"
        )
    argv = ("claude", *claude_argv(list(args), place.target.settings.defaults.claude_args))
    return place, MainCommand(LaunchMode.EXEC, argv, _one_line(" ".join(_first(("claude", *args)))))


def shell_command(words: tuple[str, ...]) -> MainCommand:
    """Return a command, one line of shell, or a login shell."""
    mode = (LaunchMode.EVAL if len(words) == 1 else LaunchMode.EXEC) if words else LaunchMode.SHELL
    return MainCommand(mode, words, _one_line(shlex.join(_first(words)) or "shell"))


def refuse_background(args: Sequence[str], configured: Sequence[str]) -> None:
    """Refuse what has a purpose only when Claude's work goes on without its main process: a VM does not.

    Words are typed (`args`) or `configured`; nothing is spent on them yet.

    Raises:
        CommandError: There is one.
    """
    for words, source, status in ((args, "", USAGE), (configured, " (claude_args)", None)):
        word = background_word(words)
        if word.startswith("-"):
            why = "would leave Claude's work in a VM that is thrown away as soon as the command returns"
            hint = (
                "leave it out: the work goes on as long as its command runs, for example in another terminal"
            )
        elif word:
            why = "is for work that Claude has left in the background, and a fresh VM has none"
            hint = "the sessions of all projects: claude-vm ps"
        else:
            continue
        raise CommandError("no-background", f"{word}{source} {why}", hint=hint, status=status)


def _first(words: Sequence[str]) -> list[str]:
    """Return as much of the words as a listing can show."""
    return [word[: TEXT_LIMIT + 1] for word in words[: TEXT_LIMIT + 1]]


def _one_line(text: str) -> str:
    text = escape_cell(text)
    return text if len(text) <= TEXT_LIMIT else text[: TEXT_LIMIT - 1] + "…"
