"""``claude-vm ps``."""

from typing import Annotated

import typer

from claude_vm.supervisor.grammar.requests import Ps
from claude_vm.supervisor.grammar.runtime import invocation


def ps(
    context: typer.Context,
    everything: Annotated[bool, typer.Option("--all", help="List also the last that ended.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> Ps:
    """List the sessions that run."""
    return Ps(flags=invocation(context).flags, all=everything, json=json)
