"""``claude-vm stop``."""

from typing import Annotated

import typer

from claude_vm.supervisor.grammar.layout import UsageError
from claude_vm.supervisor.grammar.requests import Stop
from claude_vm.supervisor.grammar.runtime import invocation


def stop(
    context: typer.Context,
    sessions: Annotated[
        list[str] | None, typer.Argument(metavar="[SESSION...]", help="Sessions, as `ps` names them.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="End every session.")] = False,
) -> Stop:
    """End sessions."""
    named = tuple(sessions or ())
    if not named and not everything:
        raise UsageError("Name a session (see: claude-vm ps), or say --all", ctx=context)
    if named and everything:
        raise UsageError("Name sessions or say --all, not both", ctx=context)
    return Stop(flags=invocation(context).flags, sessions=named, all=everything)
