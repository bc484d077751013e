"""``claude-vm pool status|fill|drain``."""

from typing import Annotated

from claude_vm.supervisor.grammar.declaring import Argument, Flag, whole_number
from claude_vm.supervisor.grammar.requests import Group, Json, Request

MOST = 64
"""Most VMs that may be kept ready for one project: as for the setting `pool.size`."""


class ShowPool(Request, frozen=True):
    """List what is kept ready, for which project, and what hinders it."""

    command = "status"
    writes = False
    json: Json = False


class FillPool(Request, frozen=True):
    """Make VMs ready for this project, with these flags' sizes and mounts; `--no-wait` returns at once."""

    command = "fill"
    count: Annotated[
        int | None,
        Argument("[N]", "How many; else what the settings say.", read=whole_number(1, MOST)),
    ] = None


class DrainPool(Request, frozen=True):
    """Give up this project's ready VMs, until its next session."""

    command = "drain"
    writes = False
    makes_room = True
    all: Annotated[bool, Flag("--all", "Those of every project.")] = False


POOL = Group(
    "pool",
    "Look after the VMs that are kept ready, so that a session need not wait for one.",
    (ShowPool, FillPool, DrainPool),
)
