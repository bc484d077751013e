"""What a command line asks for: the base of all records that `claude_vm.supervisor.grammar.parse` makes."""

from collections.abc import Sequence
from typing import Annotated, ClassVar

import msgspec

from claude_vm.supervisor.grammar.declaring import Flag
from claude_vm.supervisor.grammar.flags import Flags

Json = Annotated[bool, Flag("--json", "Print JSON.")]
"""The flag of all listings."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all requests. A subclass is a command, see `claude_vm.supervisor.grammar.declaring`.

    `command` is its name, for one of a group without the group's. `runs_others`: its words are those of
    another program, and are all in its only argument. `writes`: it can't be carried out where nothing can be
    written. `makes_room`: it deletes what nobody uses. `later` are flags that a later version will have.
    """

    command: ClassVar[str] = ""
    runs_others: ClassVar[bool] = False
    writes: ClassVar[bool] = True
    makes_room: ClassVar[bool] = False
    later: ClassVar[frozenset[str]] = frozenset()

    flags: Flags = Flags()

    @property
    def flaw(self) -> str:
        """What is wrong with the words together, or ""."""
        return ""


class Group(msgspec.Struct, frozen=True):
    """A command that has commands. `alone` is what its name alone means; None: nothing."""

    command: str
    help: str
    commands: Sequence[type[Request]]
    alone: type[Request] | None = None
