"""``claude-vm agent``."""

from typing import Annotated

import typer

from claude_vm.supervisor.grammar.requests import Agent
from claude_vm.supervisor.grammar.runtime import invocation


def agent(
    context: typer.Context,
    args: Annotated[  # noqa: ARG001 - declared for the help; typer never sees them
        list[str] | None, typer.Argument(metavar="[ARGS...]", help="Arguments of Claude, as they are.")
    ] = None,
) -> Agent:
    """Run Claude with these arguments (the default).

    Everything from the first word on that is no runtime flag goes to Claude: `claude-vm agent --version`
    asks Claude for its version.
    """
    given = invocation(context)
    return Agent(flags=given.flags, args=given.operands)
