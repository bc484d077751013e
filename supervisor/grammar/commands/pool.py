"""``claude-vm pool status|fill|drain``."""

from typing import Annotated

from claude_vm.supervisor.grammar.declaring import Argument, Flag, whole_number
from claude_vm.supervisor.grammar.requests import Group, Json, Request

MOST = 64
"""Most VMs that may be kept ready for one project: as for the setting `pool.size`."""


class ShowPool(Request, frozen=True):
    """List the ready VMs of each project, and what prevents more."""

    command = "status"
    writes = False
    json: Json = False


class FillPool(Request, frozen=True):
    """Make VMs ready for this project.

    They get the sizes and mounts that these flags say. `--no-wait` returns at once.
    """

    command = "fill"
    count: Annotated[
        int | None,
        Argument("[N]", "How many VMs; default: as the settings say.", read=whole_number(1, MOST)),
    ] = None


class DrainPool(Request, frozen=True):
    """Give up this project's ready VMs, until its next session."""

    command = "drain"
    writes = False
    makes_room = True
    all: Annotated[bool, Flag("--all", "Give up the ready VMs of all projects.")] = False


POOL = Group(
    "pool",
    "Manage the VMs that are kept ready, so that sessions don't wait for one.",
    (ShowPool, FillPool, DrainPool),
)
