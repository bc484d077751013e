"""``claude-vm completion``."""

from enum import StrEnum
from typing import Annotated

import typer

from claude_vm.supervisor.grammar.completion import script
from claude_vm.supervisor.grammar.output import Output


class ShellName(StrEnum):
    """The shells for which there is a script."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(
    shell: Annotated[
        ShellName, typer.Argument(metavar="SHELL", help="bash, zsh or fish.", show_default=False)
    ],
) -> Output:
    """Print the script that completes our command lines in a shell.

    In bash, say `source <(claude-vm completion bash)` in ~/.bashrc; in zsh, the same with zsh in ~/.zshrc,
    after compinit; in fish, `claude-vm completion fish | source` in config.fish.
    """
    return Output(lines=tuple(script(shell).splitlines()))
