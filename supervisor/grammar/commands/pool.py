"""``claude-vm pool status|fill|drain``."""

from typing import Annotated

import typer

from claude_vm.supervisor.grammar.requests import Pool
from claude_vm.supervisor.grammar.runtime import invocation
from claude_vm.supervisor.grammar.usage import whole_number

MOST = 64
"""Most VMs that may be kept ready for one project: as for the setting `pool.size`."""


def pool() -> None:
    """Look after the VMs that are kept ready, so that a session need not wait for one."""


def status(
    context: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> Pool:
    """List what is kept ready, for which project, and what hinders it."""
    return Pool(flags=invocation(context).flags, action="status", json=json)


def fill(
    context: typer.Context,
    count: Annotated[
        int | None,
        typer.Argument(
            metavar="[N]", help="How many; else what the settings say.", parser=whole_number(1, MOST)
        ),
    ] = None,
) -> Pool:
    """Make VMs ready for this project, with these flags' sizes and mounts; `--no-wait` returns at once."""
    return Pool(flags=invocation(context).flags, action="fill", count=count)


def drain(
    context: typer.Context,
    everything: Annotated[bool, typer.Option("--all", help="Those of every project.")] = False,
) -> Pool:
    """Give up this project's ready VMs, until its next session."""
    return Pool(flags=invocation(context).flags, action="drain", all=everything)
