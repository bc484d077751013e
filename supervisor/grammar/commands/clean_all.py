"""``claude-vm clean-all``."""

from typing import Annotated

import typer

from claude_vm.supervisor.grammar.requests import CleanAll
from claude_vm.supervisor.grammar.runtime import invocation


def clean_all(
    context: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="End the sessions that use them.")] = False,
) -> CleanAll:
    """Delete all templates and caches."""
    return CleanAll(flags=invocation(context).flags, yes=yes, force=force)
