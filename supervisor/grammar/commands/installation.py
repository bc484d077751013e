"""Commands on this installation: its daemon, what the host lacks, the shells."""

from enum import StrEnum
from typing import Annotated

from claude_vm.supervisor.grammar.declaring import Argument, Flag
from claude_vm.supervisor.grammar.requests import Group, Json, Request


class Doctor(Request, frozen=True):
    """Check what this host has and lacks."""

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

    In bash, say `source <(claude-vm completion bash)` in ~/.bashrc; in zsh, the same with zsh in ~/.zshrc,
    after compinit; in fish, `claude-vm completion fish | source` in config.fish.
    """

    command = "completion"
    shell: Annotated[ShellName, Argument("SHELL", "bash, zsh or fish.")]


class RunDaemon(Request, frozen=True):
    """Run the daemon in the foreground."""

    command = "run"
    writes = False


class ShowDaemon(Request, frozen=True):
    """Say whether it runs, and what it does."""

    command = "status"
    writes = False
    json: Json = False


class StopDaemon(Request, frozen=True):
    """Stop it."""

    command = "stop"
    writes = False
    force: Annotated[bool, Flag("--force", "End the sessions that run.")] = False


DAEMON = Group(
    "daemon",
    "Look after the daemon, which starts by itself and ends when it is idle.",
    (RunDaemon, ShowDaemon, StopDaemon),
)

COMMANDS = (Doctor, Version, Completion, DAEMON)
