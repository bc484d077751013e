"""Frames to bytes and bytes to frames, without any input or output. Standard library only."""

import json
import struct
import sys

from claude_vm.supervisor.wire.errors import ProtocolError
from claude_vm.supervisor.wire.messages import SIZES, FrameType

Frame = tuple[FrameType, bytes]
"""A type and its payload."""

_HEADER = struct.Struct(">BI")
_SIZE = struct.Struct(">4H")
_TYPES = {int(kind): kind for kind in FrameType}
_LARGEST_NUMBER = 0xFFFF


def encode(kind: FrameType, payload: bytes = b"") -> bytes:
    """Return a frame as bytes.

    Raises:
        ProtocolError: The payload's size is not one that this type may have.
    """
    smallest, largest = SIZES[kind]
    if not smallest <= len(payload) <= largest:
        raise ProtocolError(f"a frame {kind.name} can't have {len(payload)} bytes (at most {largest})")
    return _HEADER.pack(kind, len(payload)) + payload


def encode_json(kind: FrameType, message: dict[str, object]) -> bytes:
    """Return a control frame as bytes. Strings may hold bytes that are no UTF-8, as surrogates.

    Raises:
        ProtocolError: It is too large, or holds a surrogate that stands for no byte.
    """
    text = json.dumps(message, ensure_ascii=False, separators=(",", ":"))
    try:
        payload = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ProtocolError(f"a frame {kind.name} has text that is not UTF-8: {error.reason}") from error
    return encode(kind, payload)


def decode_json(kind: FrameType, payload: bytes) -> dict[str, object]:
    """Return a control frame's object.

    Raises:
        ProtocolError: It is none.
    """
    try:
        message = json.loads(payload.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a frame {kind.name} that is not JSON") from error
    if not isinstance(message, dict):
        raise ProtocolError(f"a frame {kind.name} that is not a JSON object")
    return message


def encode_size(rows: int, columns: int, width: int = 0, height: int = 0) -> bytes:
    """Return a SIZE frame as bytes; numbers beyond 16 bits become the nearest that fits."""
    numbers = [min(max(n, 0), _LARGEST_NUMBER) for n in (rows, columns, width, height)]
    return encode(FrameType.SIZE, _SIZE.pack(*numbers))


def decode_size(payload: bytes) -> tuple[int, int, int, int]:
    """Return rows, columns, width and height of a SIZE frame's payload, which `FrameReader` has measured."""
    rows, columns, width, height = _SIZE.unpack(payload)
    return rows, columns, width, height


def encode_numbers(kind: FrameType, *numbers: int, data: bytes = b"") -> bytes:
    """Return a frame of 32-bit numbers (a channel, a count), then data."""
    return encode(kind, b"".join(n.to_bytes(4, "big") for n in numbers) + data)


def decode_number(payload: bytes, at: int = 0) -> int:
    """Return the 32-bit number at an offset of a payload that `FrameReader` has measured."""
    return int.from_bytes(payload[at : at + 4], "big")


class FrameReader:
    """Cuts the bytes of one direction of a connection into frames, strictly.

    `accepts` are the types that this direction may carry. What is kept between calls is less than one frame,
    and what was fed beyond the frames that were asked for.
    A frame's announced size is judged as soon as its header is there, before its payload is waited for.
    """

    def __init__(self, accepts: frozenset[FrameType]) -> None:
        self._accepts = accepts
        self._buffer = bytearray()
        self._broken: ProtocolError | None = None

    @property
    def pending(self) -> int:
        """How many bytes are held. Not 0 at the end of input: it was cut off."""
        return len(self._buffer)

    def feed(self, data: bytes, most: int = sys.maxsize) -> list[Frame]:
        """Return the frames that `data` completes, in order.

        No more than `most`: the others come with the next call, for which `data` may be empty.

        Raises:
            ProtocolError: The bytes are no frames of this direction. Every later call raises it too.
        """
        if self._broken is not None:
            raise self._broken
        self._buffer += data
        frames: list[Frame] = []
        at = 0
        try:
            while len(frames) < most and (end := self._end_of_frame(at)) is not None:
                kind = _TYPES[self._buffer[at]]
                with memoryview(self._buffer) as view:
                    frames.append((kind, bytes(view[at + _HEADER.size : end])))
                at = end
        except ProtocolError as error:
            self._broken = error
            self._buffer.clear()
            raise
        self._buffer[:at] = bytes(at)  # what frees memory does not wipe it
        del self._buffer[:at]
        return frames

    def _end_of_frame(self, at: int) -> int | None:
        """Return where the frame that begins at `at` ends, or None when it isn't complete."""
        if len(self._buffer) - at < _HEADER.size:
            return None
        number, length = _HEADER.unpack_from(self._buffer, at)
        kind = _TYPES.get(number)
        if kind is None or kind not in self._accepts:
            raise ProtocolError(
                f"a frame of type {number if kind is None else kind.name} is not for this side"
            )
        smallest, largest = SIZES[kind]
        if not smallest <= length <= largest:
            raise ProtocolError(f"a frame {kind.name} can't have {length} bytes (at most {largest})")
        end = at + _HEADER.size + int(length)
        return end if end <= len(self._buffer) else None
