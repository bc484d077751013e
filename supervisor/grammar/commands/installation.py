"""Commands on this installation: its daemon, what the host lacks, the shells."""

from enum import StrEnum
from typing import Annotated

from claude_vm.supervisor.grammar.declaring import Argument, Flag
from claude_vm.supervisor.grammar.requests import Group, Json, Request


class Doctor(Request, frozen=True):
    """Check what is installed and usable on this host, and what is missing."""

    command = "doctor"
    writes = False
    json: Json = False


class Version(Request, frozen=True):
    """Show our version."""

    command = "version"
    writes = False
    json: Json = False


class ShellName(StrEnum):
    """The shells for which there is a script."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


class Completion(Request, frozen=True):
    """Print the script that completes our command lines in a shell.

    In bash, write `source <(claude-vm completion bash)` in ~/.bashrc; in zsh, the same with zsh in ~/.zshrc,
    after compinit; in fish, `claude-vm completion fish | source` in config.fish.
    """

    command = "completion"
    shell: Annotated[ShellName, Argument("SHELL", "bash, zsh or fish.")]


class RunDaemon(Request, frozen=True):
    """Run the daemon in the foreground."""

    command = "run"
    writes = False


class ShowDaemon(Request, frozen=True):
    """Show whether the daemon runs, and what it does."""

    command = "status"
    writes = False
    json: Json = False


class StopDaemon(Request, frozen=True):
    """Stop the daemon."""

    command = "stop"
    writes = False
    force: Annotated[bool, Flag("--force", "End running sessions, too.")] = False


DAEMON = Group(
    "daemon",
    "Manage the daemon, which starts by itself and ends when it is idle.",
    (RunDaemon, ShowDaemon, StopDaemon),
)

COMMANDS = (Doctor, Version, Completion, DAEMON)
