"""``claude-vm daemon run|status|stop``."""

from typing import Annotated

import typer

from claude_vm.supervisor.grammar.requests import Daemon
from claude_vm.supervisor.grammar.runtime import invocation


def daemon() -> None:
    """Look after the daemon, which starts by itself and ends when it is idle."""


def run(context: typer.Context) -> Daemon:
    """Run the daemon in the foreground."""
    return Daemon(flags=invocation(context).flags, action="run")


def status(
    context: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> Daemon:
    """Say whether it runs, and what it does."""
    return Daemon(flags=invocation(context).flags, action="status", json=json)


def stop(
    context: typer.Context,
    force: Annotated[bool, typer.Option("--force", help="End the sessions that run.")] = False,
) -> Daemon:
    """Stop it."""
    return Daemon(flags=invocation(context).flags, action="stop", force=force)
