"""What is said of a setting besides its type and default: see `claude_vm.context.config.schema`."""

from enum import Enum, IntEnum

import msgspec

from claude_vm.context.config.kinds import SettingKind


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
    """A value and who said it: `where` is a file with its line, a variable, or a flag.

    `written` is the value as it stands there, bounded.
    """

    value: object
    where: str
    written: str = ""


class Obeyed(Enum):
    """What obeys a setting: the building of a template, each VM of a session, or a batch of tasks."""

    TEMPLATE = "template"
    SESSION = "session"
    BATCH = "batch"


class Later(msgspec.Struct, frozen=True):
    """That nothing obeys a setting yet: `by` will. `today` is the value that says what is so anyway, if any.

    An empty list always does.
    """

    by: Obeyed
    today: object = None


class Setting(msgspec.Struct, frozen=True):
    """What a user may say about a setting. `variable` is its name in the environment; "" means none.

    `files` are those that may set it, if they are not those of its section. `adds_up`: lists of all layers
    count, the global one first. `later` stands at one that is only checked.
    """

    kind: SettingKind
    doc: str
    files: frozenset[Layer] | None = None
    variable: str = ""
    adds_up: bool = False
    later: Later | None = None
