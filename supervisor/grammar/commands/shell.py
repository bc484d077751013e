"""``claude-vm shell``."""

from typing import Annotated

import typer

from claude_vm.supervisor.grammar.requests import Shell
from claude_vm.supervisor.grammar.runtime import invocation


def shell(
    context: typer.Context,
    cmd: Annotated[  # noqa: ARG001 - declared for the help; typer never sees them
        list[str] | None, typer.Argument(metavar="[CMD...]", help="A command; none: a login shell.")
    ] = None,
) -> Shell:
    """Run a command, or open a login shell.

    Several words are run as exactly these words. One word with shell syntax is evaluated by the session's
    shell.
    """
    given = invocation(context)
    return Shell(flags=given.flags, words=given.operands)
