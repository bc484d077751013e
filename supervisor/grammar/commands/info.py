"""``claude-vm info``."""

from typing import Annotated

import typer

from claude_vm.supervisor.grammar.requests import Info
from claude_vm.supervisor.grammar.runtime import invocation


def info(
    context: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> Info:
    """Describe the current project: its template, sizes, mounts."""
    return Info(flags=invocation(context).flags, json=json)
