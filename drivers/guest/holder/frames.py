"""The frames between the supervisor and the holder: how they look, and what may stand in them."""

import struct
from collections.abc import Sequence

FRAME_LIMIT = 1 << 17
HEADER = struct.Struct(">cI")


class FrameError(Exception):
    """What a connection asked for can't be done; the text goes back."""


def encode(letter: bytes, payload: bytes = b"") -> bytes:
    """Return a frame."""
    return HEADER.pack(letter, len(payload)) + payload


def next_frame(received: bytearray) -> tuple[bytes, bytes] | None:
    """Take a frame off what was received: its letter and the rest; None when it is not complete.

    Raises:
        RefusedError: It is too long.
    """
    if len(received) < HEADER.size:
        return None
    letter, length = HEADER.unpack_from(received)
    if length > FRAME_LIMIT:
        raise FrameError("a frame that is too long")
    if len(received) < HEADER.size + length:
        return None
    payload = bytes(received[HEADER.size : HEADER.size + length])
    del received[: HEADER.size + length]
    return letter, payload


def session_id(name: str) -> str:
    """Return a session's id.

    Raises:
        RefusedError: It is none.
    """
    if not (name.isascii() and name.replace("-", "").isalnum() and len(name) <= 64):
        raise FrameError("not a session's id")
    return name


def offset(value: object) -> int | None:
    """Return the offset of an output's byte, or None for the first that is kept.

    Raises:
        RefusedError: It is none.
    """
    if value is not None and type(value) is not int:
        raise FrameError("not an offset")
    return value


def size(values: Sequence[object]) -> list[int]:
    """Return a terminal's rows, columns, width and height.

    Raises:
        RefusedError: They are none.
    """
    numbers = [value for value in values if type(value) is int and 0 <= value <= 0xFFFF]
    if len(numbers) != 4 or len(values) != 4:
        raise FrameError("not a size")
    return numbers
