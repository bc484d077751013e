"""What still works in a guest when its main command has ended, as its holder tells it. Only to be shown."""

from typing import Annotated

import msgspec

_MOST = 1 << 20


class RemainingWork(msgspec.Struct, frozen=True):
    """How many processes work yet, and the command lines of the first ones: a guest's text, not escaped."""

    count: Annotated[int, msgspec.Meta(ge=0, le=_MOST)] = 0
    commands: Annotated[
        tuple[Annotated[str, msgspec.Meta(max_length=200)], ...], msgspec.Meta(max_length=8)
    ] = ()


def decode_remaining(data: bytes) -> RemainingWork:
    """Return what the holder told.

    Raises:
        ValueError: It is nonsense.
    """
    return msgspec.json.decode(data, type=RemainingWork)
