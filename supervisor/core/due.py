"""What the core waits for: the things for which it asks to be woken."""

import msgspec

from claude_vm.supervisor.core.deadlines import Deadlines
from claude_vm.supervisor.core.keys import PoolKey


class Retry(msgspec.Struct, frozen=True):
    """An instance that could not be deleted shall be tried again."""

    instance_id: str


class Aged(msgspec.Struct, frozen=True):
    """An unclaimed instance has reached its greatest age."""

    instance_id: str


class Idle(msgspec.Struct, frozen=True):
    """A key was perhaps not used for so long that it is not wanted any more."""

    key: PoolKey


class Refill(msgspec.Struct, frozen=True):
    """The time has come at which a key may have one more instance."""

    key: PoolKey


Due = Retry | Aged | Idle | Refill

Agenda = Deadlines[Due]
"""All that the core waits for."""
