"""Compiled terminal descriptions: checked, and made a file for the guest.

A guest that does not know the terminal's type can't draw on it. The description travels as it is, but it is
checked first: the client has it from a path that an environment variable may name.

Source: term(5) of ncurses, "Legacy storage format" and "Extended storage format".
"""

import re
import struct

from claude_vm.drivers.api import GuestFile

MAX_BYTES = 32 * 1024

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_NUMBER_SIZES = {0o432: 2, 0o1036: 4}


def is_terminal_name(name: str) -> bool:
    """Whether a text is a terminal's name that may stand in a path."""
    return _NAME.fullmatch(name) is not None


def terminfo_file(name: str, data: bytes) -> GuestFile | None:
    """Return the file that makes a terminal known to the guest user, or None where the data is not right.

    The name need not be among those in the description: aliases are often links.
    """
    if not is_terminal_name(name) or described_names(data) is None:
        return None
    return GuestFile(path=f".terminfo/{name[0]}/{name}", data=data, mode=0o644)


def described_names(data: bytes) -> tuple[str, ...] | None:
    """Return the names in a compiled description, or None when it is not a sound one."""
    if not 12 <= len(data) <= MAX_BYTES:
        return None
    magic, names_size, booleans, numbers, strings, table_size = struct.unpack_from("<6h", data)
    number_size = _NUMBER_SIZES.get(magic)
    if number_size is None or names_size < 1 or min(booleans, numbers, strings, table_size) < 0:
        return None
    names_end = 12 + names_size
    numbers_at = _even(names_end + booleans)
    strings_at = numbers_at + numbers * number_size
    table_at = strings_at + strings * 2
    end = table_at + table_size
    if end > len(data) or not _offsets_fit(data, strings_at, strings, table_size):
        return None
    if len(data) > end and not _extension_fits(data, _even(end), number_size):
        return None
    return _names(data[12:names_end])


def _even(position: int) -> int:
    """Numbers and the extension begin at even positions."""
    return position + position % 2


def _offsets_fit(data: bytes, position: int, count: int, size: int) -> bool:
    """Whether each string's offset is absent (negative) or inside a table of `size` bytes."""
    return all(offset < size for offset in struct.unpack_from(f"<{count}h", data, position))


def _extension_fits(data: bytes, position: int, number_size: int) -> bool:
    """Whether the user-defined part is whole and is the last thing in the data."""
    if len(data) <= position:
        return True  # a byte of padding
    if len(data) < position + 10:
        return False
    booleans, numbers, strings, items, table_size = struct.unpack_from("<5h", data, position)
    if min(booleans, numbers, strings, items, table_size) < 0:
        return False
    numbers_at = _even(position + 10 + booleans)
    strings_at = numbers_at + numbers * number_size
    names = booleans + numbers + strings
    end = strings_at + 2 * (strings + names) + table_size
    return _even(end) >= len(data) >= end and _offsets_fit(data, strings_at, strings + names, table_size)


def _names(section: bytes) -> tuple[str, ...] | None:
    """Return the names of a NUL-terminated section: ``name|alias|a long description``."""
    text = section[:-1]
    if section[-1:] != b"\0" or not text or any(not 0x20 <= byte < 0x7F for byte in text):
        return None
    return tuple(text.decode("ascii").split("|"))
