"""What is said of a setting besides its type and default: see `claude_vm.context.config.schema`."""

from enum import IntEnum

import msgspec

from claude_vm.context.config.kinds import Kind


class Layer(IntEnum):
    """Where a value comes from; a later layer wins.

    REPOSITORY and PROJECT are files that a guest can write. They get their content only through approval
    (feature C11), which does not exist yet, so nothing reads them.
    """

    DEFAULT = 0
    GLOBAL = 1
    REPOSITORY = 2
    PROJECT = 3
    ENVIRONMENT = 4
    FLAG = 5

    @property
    def title(self) -> str:
        """Its name in lower case."""
        return self.name.lower()


FILES = frozenset({Layer.GLOBAL, Layer.REPOSITORY, Layer.PROJECT})
HOST_FILES = frozenset({Layer.GLOBAL})
"""For what concerns the host and not one project."""


class Value(msgspec.Struct, frozen=True):
    """A value and who said it: `where` is a file with its line, a variable, or a flag."""

    value: object
    where: str


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What a user may say about a setting. `variable` is its name in the environment; "" means none.

    `adds_up`: lists of all layers count, the global one first. `in_effect` is False for a setting that is
    checked now and will be used by a later version.
    """

    kind: Kind
    doc: str
    files: frozenset[Layer] = FILES
    variable: str = ""
    adds_up: bool = False
    in_effect: bool = True
