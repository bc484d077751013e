"""The kinds of values that settings have: what is valid, and how it is read from TOML and from text.

A kind's `read` gets a TOML value, its `from_text` what an environment variable or a flag says. Both return
the value that a setting then has, or raise `BadValueError` with what is wrong. None means: as if not set.
"""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec


class BadValueError(Exception):
    """A value is not of its kind.

    `item` is the index of the wrong item of a list, `near` what was perhaps meant.
    """

    def __init__(self, message: str, *, item: int | None = None, near: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.item = item
        self.near = near


class PathBase(msgspec.Struct, frozen=True):
    """Where a value stands. Its relative paths are relative to `folder`; ``~`` is `home`."""

    folder: Path
    home: Path


class SettingKind(ABC):
    """What values a setting may have.

    `valid` describes them in a few words, for documents and reports. `words` are those that can be listed,
    each with what it means, for completion.
    """

    valid: str
    words: Mapping[str, str] = {}

    @abstractmethod
    def read(self, value: object, place: PathBase) -> object:
        """Return the setting's value for a TOML value.

        Raises:
            BadValueError: It is not of this kind.
        """

    def from_text(self, text: str, place: PathBase) -> object:
        """Return the setting's value for a text: mostly it is what stands between the quotes in TOML.

        Raises:
            BadValueError: It is not of this kind.
        """
        return self.read(text, place)


def type_name(value: object) -> str:
    """Return what TOML calls the type of a value."""
    names = {
        bool: "a boolean",
        int: "an integer",
        float: "a float",
        str: "a string",
        list: "an array",
        dict: "a table",
    }
    return names.get(type(value), "a date or time")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise BadValueError(f"is {type_name(value)}, not a string")
    if "\0" in value:
        raise BadValueError("has a NUL character")
    return value


def table(value: object, keys: Sequence[str]) -> dict[str, object]:
    """Return a table that has none but these keys.

    Raises:
        BadValueError: It is no table, or has others.
    """
    if not isinstance(value, dict):
        raise BadValueError(f"is {type_name(value)}, not a table")
    unknown = [key for key in value if key not in keys]
    if unknown:
        raise BadValueError(f"has an unknown key '{unknown[0]}' (it has {', '.join(keys)})")
    return value


class Integer(SettingKind):
    """A whole number in a range."""

    def __init__(self, low: int, high: int) -> None:
        self.low = low
        self.high = high
        self.valid = f"{low}-{high}"

    def read(self, value: object, place: PathBase) -> int:  # noqa: ARG002 - numbers are the same everywhere
        """Return the number."""
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadValueError(f"is {type_name(value)}, not an integer")
        if not self.low <= value <= self.high:
            raise BadValueError("is out of range")
        return value

    def from_text(self, text: str, place: PathBase) -> int:
        """Return the number that a text is."""
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
            raise BadValueError("is not an integer")
        return self.read(int(text), place)


class Switch(SettingKind):
    """Yes or no."""

    valid = "true, false"

    def read(self, value: object, place: PathBase) -> bool:  # noqa: ARG002 - see Integer
        """Return the boolean."""
        if not isinstance(value, bool):
            raise BadValueError(f"is {type_name(value)}, not a boolean")
        return value


class WordChoice(SettingKind):
    """One of a few words. `told` says what some of them mean.

    Words in `unenforced` are known, but nothing would do what they promise yet. They are refused: who asks
    for protection must not believe to have it.
    """

    def __init__(self, *choices: str, unenforced: tuple[str, ...] = (), **told: str) -> None:
        self.choices = choices
        self.unenforced = unenforced
        self.valid = ", ".join(choices)
        self.words = {choice: told.get(choice, "") for choice in choices}

    def read(self, value: object, place: PathBase) -> str:  # noqa: ARG002 - see Integer
        """Return the word."""
        from difflib import get_close_matches  # noqa: PLC0415 - only for what is wrong

        text = _text(value)
        if text in self.unenforced:
            raise BadValueError("is not available yet, so nothing would enforce it")
        if text not in self.choices:
            near = "".join(get_close_matches(text.lower(), self.choices, n=1))
            raise BadValueError("is not one of these", near=near)
        return text


class Text(SettingKind):
    """Any text, or text of a pattern. An empty one is None, if `empty_is_unset`."""

    def __init__(
        self, valid: str = "a string", pattern: str = "(?s:.*)", *, empty_is_unset: bool = False
    ) -> None:
        self.valid = valid
        self.pattern = re.compile(pattern)
        self.empty_is_unset = empty_is_unset

    def read(self, value: object, place: PathBase) -> str | None:  # noqa: ARG002 - see Integer
        """Return the text."""
        text = _text(value)
        if not text and self.empty_is_unset:
            return None
        if not self.pattern.fullmatch(text):
            raise BadValueError("is not of this form")
        return text


class Duration(SettingKind):
    """A span of time such as ``90s``, ``30m`` or ``1h30m``, in seconds; not shorter than `least_s`."""

    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}  # noqa: RUF012 - never changed
    limit_s = 3650 * 86400

    def __init__(self, least_s: int = 1) -> None:
        self.least_s = least_s
        least = f", {least_s}s at least" if least_s > 1 else ""
        self.valid = f"a time such as 90s, 30m, 12h, 30d or 1h30m{least}"

    def read(self, value: object, place: PathBase) -> int:  # noqa: ARG002 - see Integer
        """Return the seconds."""
        text = _text(value)
        if not re.fullmatch(r"(?:[0-9]{1,9}[smhd])+", text):
            raise BadValueError("is not a time with a unit")
        seconds = sum(
            int(number) * self.units[unit] for number, unit in re.findall(r"([0-9]+)([smhd])", text)
        )
        if not self.least_s <= seconds <= self.limit_s:
            raise BadValueError("is out of range")
        return seconds


class Either(SettingKind):
    """A value of the first kind that takes it. What is wrong is said by the last one."""

    def __init__(self, *kinds: SettingKind) -> None:
        self.kinds = kinds
        self.valid = " or ".join(kind.valid for kind in kinds)

    def read(self, value: object, place: PathBase) -> object:
        """Return the value."""
        for kind in self.kinds[:-1]:
            try:
                return kind.read(value, place)
            except BadValueError:
                continue
        return self.kinds[-1].read(value, place)


class ListOf(SettingKind):
    """A list of values of one kind, each of which errors call `item`."""

    def __init__(self, kind: SettingKind, valid: str, *, item: str = "item") -> None:
        self.kind = kind
        self.valid = valid
        self.item = item

    def read(self, value: object, place: PathBase) -> tuple[object, ...]:
        """Return the values."""
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise BadValueError(f"is {type_name(value)}, not an array")
        items = []
        for index, item in enumerate(value):
            try:
                items.append(self.kind.read(item, place))
            except BadValueError as error:
                message = f"{self.item} {index + 1} {error.message}"
                raise BadValueError(message, item=index, near=error.near) from error
        return tuple(items)


class ExistingFile(SettingKind):
    """A file that exists, as an absolute path. Relative: to the file that names it. ``~``: the home."""

    valid = "a file that exists"

    def __init__(self, *, empty_is_unset: bool = False) -> None:
        self.empty_is_unset = empty_is_unset

    def read(self, value: object, place: PathBase) -> Path | None:
        """Return the path."""
        text = _text(value)
        if not text:
            if self.empty_is_unset:
                return None
            raise BadValueError("is empty")
        path = place.home / text[2:] if text.startswith("~/") else place.folder / text
        if not os.path.isfile(path):  # noqa: PTH113 - which never raises, whatever the path is
            raise BadValueError(f"does not exist (looked for '{path}')")
        return path
