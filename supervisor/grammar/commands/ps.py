"""``claude-vm ps``."""

from typing import Annotated

import typer

from claude_vm.supervisor.grammar.layout import UsageError
from claude_vm.supervisor.grammar.requests import Ps
from claude_vm.supervisor.grammar.runtime import invocation


def ps(
    context: typer.Context,
    everything: Annotated[bool, typer.Option("--all", help="List also the last that ended.")] = False,
    story: Annotated[
        str | None,
        typer.Option("--story", metavar="ID", help="Tell what happened to a session or a VM, step by step."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> Ps:
    """List the sessions that run."""
    if story == "" or (story and everything):
        raise UsageError("Name one session or VM with --story, or say --all", ctx=context)
    return Ps(flags=invocation(context).flags, all=everything, story=story or "", json=json)
