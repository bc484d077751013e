"""``claude-vm list``."""

from typing import Annotated

import typer

from claude_vm.supervisor.grammar.requests import ListTemplates
from claude_vm.supervisor.grammar.runtime import invocation


def list_templates(
    context: typer.Context,
    disk_usage: Annotated[bool, typer.Option("--disk-usage", help="Show what each takes on disk.")] = False,
    unused: Annotated[bool, typer.Option("--unused", help="Only those not used for 30 days.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> ListTemplates:
    """List the templates."""
    return ListTemplates(flags=invocation(context).flags, disk_usage=disk_usage, unused=unused, json=json)
