"""``claude-vm version``."""

from typing import Annotated

import typer

from claude_vm.supervisor.grammar.requests import Version
from claude_vm.supervisor.grammar.runtime import invocation


def version(
    context: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> Version:
    """Show our version."""
    return Version(flags=invocation(context).flags, json=json)
