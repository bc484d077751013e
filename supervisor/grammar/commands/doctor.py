"""``claude-vm doctor``."""

from typing import Annotated

import typer

from claude_vm.supervisor.grammar.requests import Doctor
from claude_vm.supervisor.grammar.runtime import invocation


def doctor(
    context: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> Doctor:
    """Check what this host has and lacks."""
    return Doctor(flags=invocation(context).flags, json=json)
