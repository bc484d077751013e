"""``claude-vm setup``."""

from typing import Annotated

import typer

from claude_vm.supervisor.grammar.requests import Setup
from claude_vm.supervisor.grammar.runtime import invocation


def setup(
    context: typer.Context,
    no_agent: Annotated[
        bool, typer.Option("--no-agent", help="Build a template without Claude Code.")
    ] = False,
) -> Setup:
    """Build the project's template.

    The new template is built beside the old one and takes its place at the end; a failed or interrupted
    setup leaves the old one usable.
    """
    return Setup(flags=invocation(context).flags, agent=not no_agent)
