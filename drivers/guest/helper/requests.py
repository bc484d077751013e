"""Requests of the host: the lines they come in, and the fields that they are made of."""

import binascii
from typing import Any, TypeVar

T = TypeVar("T")
Fields = dict[str, Any]

LINE_LIMIT = 1 << 20


class RequestError(Exception):
    """A request that can't be done; the text goes to the host."""


class Lines:
    """Cuts a byte stream into bounded lines; resynchronises at the next newline."""

    def __init__(self, limit: int = LINE_LIMIT) -> None:
        self.limit = limit
        self.buffer = bytearray()
        self.skipping = False

    def feed(self, data: bytes) -> list[bytes]:
        """Return the complete lines that `data` ends."""
        lines = []
        *ended, rest = data.split(b"\n")
        for part in ended:
            self._add(part)
            if self.buffer and not self.skipping:
                lines.append(bytes(self.buffer))
            self.clear()
        self._add(rest)
        return lines

    def clear(self) -> None:
        """Forget what was begun."""
        self.buffer.clear()
        self.skipping = False

    def _add(self, part: bytes) -> None:
        if self.skipping or len(self.buffer) + len(part) > self.limit:
            self.buffer.clear()
            self.skipping = True
        else:
            self.buffer += part


def field(request: Fields, name: str, kind: type[T], default: T | None = None) -> T:
    """Return a field of exactly this type, or refuse."""
    value = request.get(name, default)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise RequestError(f"{name}: {kind.__name__} expected")
    return value  # type: ignore[return-value]


def blob(request: Fields, name: str) -> bytes:
    """Return a base64 field's bytes, or refuse."""
    try:
        return binascii.a2b_base64(field(request, name, str), strict_mode=True)
    except ValueError:
        raise RequestError(f"{name}: not base64") from None


def absolute(path: str) -> str:
    """Return an absolute path without surprises, or refuse."""
    if not path.startswith("/") or "\0" in path or ".." in path.split("/"):
        raise RequestError("path: not absolute")
    return path
