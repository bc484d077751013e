"""How a command and its flags are declared: once, as a record with what may be typed in its annotations.

A command is a `Request`, its help the docstring. Each of its fields that somebody can type has a `Flag` or an
`Argument` in its annotation, and the field's type says how: a bool is a flag without a value, a tuple may be
repeated, all else has one value. typer's parser, the splitter, completion and the help are made from this,
and so is what `docs/configuration.md` says of flags.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, get_origin, get_type_hints

import msgspec

LONGEST_SHOWN = 60
"""Characters of a wrong word that a message repeats."""


class Flag(msgspec.Struct, frozen=True):
    """A flag, as it stands in the annotation of a field.

    ``{valid}`` in its `help` is what is valid for the setting that it `sets`, a dotted key. `adds_to` is a
    setting to whose list its values come when that is used. `metavar` stands for the value, `panel` is the
    part of the help. `read` makes a value of the text, and raises ValueError with what is wrong.
    """

    name: str
    help: str
    short: str = ""
    metavar: str = ""
    panel: str = ""
    read: Callable[[str], object] | None = None
    sets: str = ""
    adds_to: str = ""


class Argument(msgspec.Struct, frozen=True):
    """What stands without a flag, as it stands in the annotation of a field. `read`: see `Flag`."""

    metavar: str
    help: str
    read: Callable[[str], object] | None = None


class Field(msgspec.Struct, frozen=True):
    """A field of a record that can be typed. `default` is `msgspec.NODEFAULT` for one that must be."""

    name: str
    declared: Flag | Argument
    type: Any
    default: Any

    @property
    def is_switch(self) -> bool:
        """Whether it is given or not, without a value."""
        return self.type is bool

    @property
    def may_repeat(self) -> bool:
        """Whether it takes several values."""
        return get_origin(self.type) is tuple and self.declared.read is None


@cache
def fields(record: type[msgspec.Struct]) -> tuple[Field, ...]:
    """Return the fields of a record that can be typed, in order."""
    hints = get_type_hints(record, include_extras=True)
    found = []
    for field in msgspec.structs.fields(record):
        declared = [
            p for p in getattr(hints[field.name], "__metadata__", ()) if isinstance(p, Flag | Argument)
        ]
        if declared:
            hint = hints[field.name].__origin__
            found.append(Field(field.name, declared[0], hint, field.default))
    return tuple(found)


def flags_of(record: type[msgspec.Struct]) -> tuple[tuple[Flag, Field], ...]:
    """Return the flags of a record with their fields, in order."""
    return tuple((field.declared, field) for field in fields(record) if isinstance(field.declared, Flag))


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """Return what reads a whole number in a range, both ends included."""

    def read(text: str) -> int:
        digits = str(text)  # a default is a number already
        if digits.isascii() and digits.isdigit() and len(digits) < 10 and least <= int(digits) <= most:
            return int(digits)
        raise ValueError(f"is a whole number from {least} to {most}, not '{cut(digits)}'")

    return read


def words_with_commas(text: str) -> tuple[str, ...]:
    """Return the words of a list with commas."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def cut(word: str) -> str:
    """Return a word of the command line, bounded."""
    return word if len(word) <= LONGEST_SHOWN else f"{word[:LONGEST_SHOWN]}…"
