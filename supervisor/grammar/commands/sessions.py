"""Commands that begin, list and end sessions."""

from typing import Annotated

from claude_vm.supervisor.grammar.declaring import Argument, Flag
from claude_vm.supervisor.grammar.requests import Json, Request


class Agent(Request, frozen=True):
    """Run Claude with these arguments (the default).

    The first word that is not a runtime flag, and all words after it, go to Claude:
    `claude-vm agent --version` asks Claude for its version.
    """

    command = "agent"
    runs_others = True
    args: Annotated[tuple[str, ...], Argument("[ARGS...]", "Arguments for Claude, passed on unchanged.")] = ()


class Shell(Request, frozen=True):
    """Run a command, or open a login shell.

    Several words are run as exactly these words. One word with shell syntax is evaluated by the session's
    shell.
    """

    command = "shell"
    runs_others = True
    words: Annotated[tuple[str, ...], Argument("[CMD...]", "A command; default: a login shell.")] = ()


class Ps(Request, frozen=True):
    """List the running sessions."""

    command = "ps"
    writes = False
    all: Annotated[bool, Flag("--all", "Also list sessions that ended recently.")] = False
    story: Annotated[
        str | None, Flag("--story", "Show what happened to a session or a VM, step by step.", metavar="ID")
    ] = None
    json: Json = False

    @property
    def flaw(self) -> str:
        """What is wrong with the words together, or ""."""
        if self.story == "" or (self.story and self.all):
            return "Name one session or VM with --story, or pass --all"
        return ""


class Stop(Request, frozen=True):
    """End sessions."""

    command = "stop"
    writes = False
    sessions: Annotated[tuple[str, ...], Argument("[SESSION...]", "Sessions, as `ps` names them.")] = ()
    all: Annotated[bool, Flag("--all", "End every session.")] = False

    @property
    def flaw(self) -> str:
        """What is wrong with the words together, or ""."""
        if self.sessions and self.all:
            return "Name sessions or pass --all, not both"
        if not self.sessions and not self.all:
            return "Name a session (see: claude-vm ps), or pass --all"
        return ""


COMMANDS = (Agent, Shell, Ps, Stop)
