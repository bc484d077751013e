"""``claude-vm clean``."""

from typing import Annotated

import typer

from claude_vm.supervisor.grammar.requests import Clean
from claude_vm.supervisor.grammar.runtime import invocation


def clean(
    context: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="End the sessions that use it.")] = False,
) -> Clean:
    """Delete the project's template."""
    return Clean(flags=invocation(context).flags, yes=yes, force=force)
