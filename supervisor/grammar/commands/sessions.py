"""Commands that begin, list and end sessions."""

from typing import Annotated

from claude_vm.supervisor.grammar.declaring import Argument, Flag
from claude_vm.supervisor.grammar.requests import Json, Request


class Agent(Request, frozen=True):
    """Run Claude with these arguments (the default).

    Everything from the first word on that is no runtime flag goes to Claude: `claude-vm agent --version`
    asks Claude for its version.
    """

    command = "agent"
    runs_others = True
    args: Annotated[tuple[str, ...], Argument("[ARGS...]", "Arguments of Claude, as they are.")] = ()


class Shell(Request, frozen=True):
    """Run a command, or open a login shell.

    Several words are run as exactly these words. One word with shell syntax is evaluated by the session's
    shell.
    """

    command = "shell"
    runs_others = True
    words: Annotated[tuple[str, ...], Argument("[CMD...]", "A command; none: a login shell.")] = ()


class Ps(Request, frozen=True):
    """List the sessions that run."""

    command = "ps"
    writes = False
    all: Annotated[bool, Flag("--all", "List also the last that ended.")] = False
    story: Annotated[
        str | None, Flag("--story", "Tell what happened to a session or a VM, step by step.", metavar="ID")
    ] = None
    json: Json = False

    @property
    def flaw(self) -> str:
        """What is wrong with the words together, or ""."""
        if self.story == "" or (self.story and self.all):
            return "Name one session or VM with --story, or say --all"
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
            return "Name sessions or say --all, not both"
        if not self.sessions and not self.all:
            return "Name a session (see: claude-vm ps), or say --all"
        return ""


COMMANDS = (Agent, Shell, Ps, Stop)
